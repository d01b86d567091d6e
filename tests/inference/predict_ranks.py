"""One rank: `mri-ds predict` for each list of arguments in a JSON file, one after the other; exit codes to CODES.RANK."""

import json
import os
import sys
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # DeepSpeed's launcher sets it

from mri_ds.cli.main import main

launcher = [argument for argument in sys.argv[1:] if argument.startswith("--local_rank")]  # DeepSpeed's says it in front
jobs, out = (argument for argument in sys.argv[1:] if argument not in launcher)
codes = []
for arguments in json.loads(Path(jobs).read_text()):
    try:
        main([*launcher, "predict", *arguments])
    except SystemExit as end:
        codes.append(end.code)
Path(f"{out}.{os.environ.get('RANK', 0)}").write_text(json.dumps(codes))
