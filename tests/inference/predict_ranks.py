"""One rank: `mri-ds predict` for each list of arguments in a JSON file, one after the other; exit codes to CODES.RANK."""

import json
import os
import sys
from pathlib import Path

from mri_ds.cli.main import main

codes = []
for arguments in json.loads(Path(sys.argv[1]).read_text()):
    try:
        main(["predict", *arguments])
    except SystemExit as end:
        codes.append(end.code)
Path(f"{sys.argv[2]}.{os.environ.get('RANK', 0)}").write_text(json.dumps(codes))
