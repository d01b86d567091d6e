"""Weights & Biases, for those who ask for it: `training.wandb: PROJECT` and `pip install 'mri_ds[track]'`.

In: what Tracker is told.  Out: a wandb run in RUN/wandb, sent where WANDB_MODE says (offline writes files for `wandb sync`
later). A resumed run keeps its id, which stands in RUN/wandb_id.
"""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mri_ds.errors import InputError


class WandbSink:
    """One wandb run. Raises InputError where the package is absent or refuses to start."""

    def __init__(self, run_dir: Path, *, project: str) -> None:
        try:
            import wandb
        except ImportError:
            fix = "pip install 'mri_ds[track]', or leave it empty"
            raise InputError("wandb is not installed", where="training.wandb", fix=fix) from None
        self.wandb = wandb
        settings = wandb.Settings(console="off", silent=True)
        try:
            self.run = wandb.init(
                project=project, dir=str(run_dir), id=_own_id(run_dir / "wandb_id"), resume="allow", settings=settings
            )
        except (wandb.errors.Error, OSError) as err:
            fix = "`wandb login`, or WANDB_MODE=offline and `wandb sync` later, or leave it empty"
            raise InputError(f"wandb does not start: {err}", where="training.wandb", fix=fix) from None

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def image(self, step: int, tag: str, picture: np.ndarray) -> None:
        self.run.log({tag: self.wandb.Image(picture)}, step=step)

    def hyper_parameters(self, values: Mapping[str, Any], final: Mapping[str, float]) -> None:
        self.run.config.update(dict(values), allow_val_change=True)
        self.run.summary.update(dict(final))

    def close(self) -> None:
        self.run.finish()


def _own_id(path: Path) -> str:
    if not path.is_file():
        path.write_text(secrets.token_hex(4) + "\n")
    return path.read_text().strip()
