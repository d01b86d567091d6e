"""What a person watching rank 0 sees: a bar that moves on a terminal, a line now and then in a log.

The other ranks say nothing; what goes wrong on them comes with their rank's number.
"""

import sys
import time
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from mri_ds.quiet import is_quiet

LINE_EVERY_S = 10.0


class Progress:
    """Writes to stderr: step, loss, seconds per step, voxels per second, time left."""

    def __init__(
        self, steps: int, start: int, *, is_shown: bool, every_s: float = LINE_EVERY_S, stream: TextIO | None = None
    ) -> None:
        self.steps, self.start, self.is_shown, self.every_s = steps, start, is_shown, every_s
        self.stream = stream or sys.stderr
        self.began = self.last = time.monotonic()
        self.bars: Bars | None = None
        self.is_quiet = is_quiet()
        if is_shown and not self.is_quiet and self.stream.isatty():
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[told]}"), TimeElapsedColumn())
            self.bars = Bars(TextColumn("step"), *columns, console=Console(file=self.stream))
            self.bar = self.bars.add_task("step", total=steps, completed=start, told="starting")
            self.bars.start()

    def say(self, text: str) -> None:
        """One line that stays."""
        if self.bars is not None:
            self.bars.console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif self.is_shown:
            print(text, file=self.stream, flush=True)

    def update(self, step: int, scalars: dict[str, float]) -> None:
        """After `step` steps; scalars as Window's."""
        if not self.is_shown or self.is_quiet:
            return
        now = time.monotonic()
        told = self._told(scalars, left_s=(now - self.began) / max(step - self.start, 1) * (self.steps - step))
        if self.bars is not None:
            self.bars.update(self.bar, completed=step, told=told)
        elif now - self.last >= self.every_s or step >= self.steps:
            self.last = now
            print(f"step {step}/{self.steps}  {told}", file=self.stream, flush=True)

    def close(self) -> None:
        if self.bars is not None:
            self.bars.stop()
            self.bars = None

    def _told(self, scalars: dict[str, float], *, left_s: float) -> str:
        return (
            f"loss {scalars['loss']:.4f}  {scalars['throughput/step_s']:.2f} s/step  "
            f"{scalars['throughput/voxels_per_s'] / 1e6:.2f} Mvoxel/s  {duration(left_s)} left"
        )


def duration(seconds: float) -> str:
    """Minutes and seconds, from an hour on with hours.

    >>> duration(59.6), duration(3725)
    ('1:00', '1:02:05')
    """
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
