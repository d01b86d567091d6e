"""`deepspeed [launcher options] launch/train.py [options]`: each rank runs `mri-ds train` with the same options.

Works from a checkout that is not installed, on nodes that see it at the same path.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mri_ds.training.signals import listen

if __name__ == "__main__":
    listen()  # at once: a signal that comes during the imports must not end this rank
    from mri_ds.cli.main import main

    main(["train", *sys.argv[1:]])
