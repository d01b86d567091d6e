"""What a person watching rank 0 sees: a line that moves on a terminal, a line now and then in a log."""

import sys
import time
from typing import TextIO


class Progress:
    """Writes to stderr: step, loss, voxels per second, time left."""

    def __init__(self, steps: int, start: int, *, is_shown: bool, every_s: float = 10.0, stream: TextIO | None = None) -> None:
        self.steps, self.start, self.is_shown = steps, start, is_shown
        self.stream = stream or sys.stderr
        self.every_s = 0.0 if self.stream.isatty() else every_s
        self.began = self.last = time.monotonic()

    def say(self, text: str) -> None:
        if self.is_shown:
            print(text, file=self.stream, flush=True)

    def update(self, step: int, scalars: dict[str, float]) -> None:
        now = time.monotonic()
        if not self.is_shown or (now - self.last < self.every_s and step < self.steps):
            return
        self.last = now
        left = (now - self.began) / (step - self.start) * (self.steps - step)
        text = (
            f"step {step}/{self.steps}  loss {scalars['loss']:.4f}  {scalars['throughput/step_s']:.2f} s/step  "
            f"{scalars['throughput/voxels_per_s'] / 1e6:.2f} Mvoxel/s  {left // 60:.0f}:{left % 60:02.0f} left"
        )
        end = "" if self.stream.isatty() else "\n"
        print(f"\r\x1b[K{text}" if self.stream.isatty() else text, end=end, file=self.stream, flush=True)

    def close(self) -> None:
        if self.is_shown and self.stream.isatty():
            print(file=self.stream, flush=True)
