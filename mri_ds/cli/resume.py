"""`mri-ds train --resume RUN`: what a run was started with, kept in its folder, so that one option goes on with it.

RUN/launch.json holds the scale and the data's address, RUN/ds_config.given.json the DeepSpeed JSON with its "auto" values, which
another number of ranks resolves anew; RUN/config.yaml is the whole science.
"""

import json
from pathlib import Path
from typing import NamedTuple

from mri_ds.errors import InputError

LAUNCH, GIVEN = "launch.json", "ds_config.given.json"


class Launch(NamedTuple):
    config: Path
    scale: str
    ds_config: Path
    data: Path


def launch_of(run: Path) -> Launch:
    """Raises InputError for a folder that no run was started in."""
    try:
        told = json.loads((run / LAUNCH).read_text())
        return Launch(run / "config.yaml", told["scale"], run / GIVEN, Path(told["data"]))
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"is no run to resume: it has no sound {LAUNCH}", where=run, fix="give the --run of `mri-ds train`"
        ) from None
