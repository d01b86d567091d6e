"""What a run tells while it runs: TensorBoard events, metrics.jsonl, and on request Weights & Biases; written by one rank.

In: (step, {name: number}), (step, tag, picture), and at the end the hyper-parameters.  Out: RUN/events.out.tfevents.* and
RUN/metrics.jsonl, one `{"step": 10, "loss/total": 0.7, ...}` a line, both flushed at every call so that a killed run keeps all
it told. A run resumed from the checkpoint of step k tells the steps after k again: what the killed run told of them is withdrawn
(lines cut from metrics.jsonl, points purged by TensorBoard's own session-start mark).
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


class Tracker:
    """Writes when `is_writer`, else does nothing. `start_step` is the last step that stands: 0 for a new run.

    wandb_project: also tell Weights & Biases, see wandb_sink.py; "" does not, and imports nothing.

    >>> tracker = Tracker(Path("runs/first"), is_writer=True)  # doctest: +SKIP
    >>> tracker.scalars(10, {"loss/total": 0.7})  # doctest: +SKIP
    >>> tracker.close()  # doctest: +SKIP
    """

    def __init__(self, run_dir: Path, is_writer: bool, *, start_step: int = 0, wandb_project: str = "") -> None:
        self.is_writer = is_writer
        self._wandb: Any = None
        if not is_writer:
            return
        from torch.utils.tensorboard import SummaryWriter

        run_dir.mkdir(parents=True, exist_ok=True)
        if wandb_project:
            from mri_ds.training.wandb_sink import WandbSink

            self._wandb = WandbSink(run_dir, project=wandb_project)
        withdraw_after(run_dir / "metrics.jsonl", start_step)
        self._lines = (run_dir / "metrics.jsonl").open("a")
        self._events = SummaryWriter(str(run_dir), purge_step=start_step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One line and one point per value. A value that is not finite is null in the line (JSON has no NaN)."""
        if not self.is_writer:
            return
        plain = {name: float(value) for name, value in values.items()}
        for name, value in plain.items():
            self._events.add_scalar(name, value, step)
        self._events.flush()
        line = {name: value if math.isfinite(value) else None for name, value in plain.items()}
        self._lines.write(json.dumps({"step": step, **line}) + "\n")
        self._lines.flush()
        if self._wandb is not None:
            self._wandb.scalars(step, plain)

    def image(self, step: int, tag: str, picture: np.ndarray) -> None:
        """A picture (H, W, 3) uint8."""
        if not self.is_writer:
            return
        assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3, (picture.dtype, picture.shape)
        self._events.add_image(tag, picture, step, dataformats="HWC")
        self._events.flush()
        if self._wandb is not None:
            self._wandb.image(step, tag, picture)

    def hyper_parameters(self, values: Mapping[str, Any], final: Mapping[str, float]) -> None:
        """TensorBoard's HPARAMS page: what the run was made with, beside the figures in `final` that it ended with.

        values: nested mappings; numbers, texts and switches are told under dotted names, everything else is left out.
        """
        if not self.is_writer:
            return
        from torch.utils.tensorboard.summary import hparams

        flat = flat_values(values)
        for summary in hparams(flat, dict(final)):
            self._events.file_writer.add_summary(summary)  # type: ignore[attr-defined]
        self._events.flush()
        if self._wandb is not None:
            self._wandb.hyper_parameters(flat, final)

    def close(self) -> None:
        if self.is_writer:
            self._events.close()
            self._lines.close()
            if self._wandb is not None:
                self._wandb.close()


def flat_values(values: Mapping[str, Any], prefix: str = "") -> dict[str, bool | float | str]:
    """Numbers, texts and switches of nested mappings under dotted names.

    >>> flat_values({"training": {"lr": 0.1, "betas": [0.9, 0.98]}, "model": {"use_moe": True}})
    {'training.lr': 0.1, 'model.use_moe': True}
    """
    flat: dict[str, bool | float | str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flat_values(value, f"{prefix}{name}.")
        elif isinstance(value, bool | int | float | str):
            flat[f"{prefix}{name}"] = value
    return flat


def withdraw_after(path: Path, step: int) -> None:
    """Keeps the lines of metrics.jsonl up to and including `step`; drops later ones and a last line torn by a kill."""
    if not path.exists():
        return
    kept = [line for line in path.read_text().splitlines() if (told := _step_of(line)) is not None and told <= step]
    beside = path.with_suffix(".tmp")
    beside.write_text("".join(line + "\n" for line in kept))
    os.replace(beside, path)


def _step_of(line: str) -> int | None:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None
