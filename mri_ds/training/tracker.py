"""What a run tells while it runs: TensorBoard events and metrics.jsonl, written by one rank.

In: (step, {name: number}) and (step, tag, picture).  Out: RUN/events.out.tfevents.* and RUN/metrics.jsonl, one
`{"step": 10, "loss/total": 0.7, ...}` a line, both flushed at every call so that a killed run keeps all it told.
A run resumed from the checkpoint of step k tells the steps after k again: what the killed run told of them is withdrawn
(lines cut from metrics.jsonl, points purged by TensorBoard's own session-start mark).
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np


class Tracker:
    """Writes when `is_writer`, else does nothing. `start_step` is the last step that stands: 0 for a new run.

    >>> tracker = Tracker(Path("runs/first"), is_writer=True)
    >>> tracker.scalars(10, {"loss/total": 0.7})
    >>> tracker.close()
    """

    def __init__(self, run_dir: Path, is_writer: bool, *, start_step: int = 0) -> None:
        self.is_writer = is_writer
        if not is_writer:
            return
        from torch.utils.tensorboard import SummaryWriter

        run_dir.mkdir(parents=True, exist_ok=True)
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

    def image(self, step: int, tag: str, picture: np.ndarray) -> None:
        """A picture (H, W, 3) uint8."""
        if not self.is_writer:
            return
        assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3, (picture.dtype, picture.shape)
        self._events.add_image(tag, picture, step, dataformats="HWC")
        self._events.flush()

    def close(self) -> None:
        if self.is_writer:
            self._events.close()
            self._lines.close()


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
