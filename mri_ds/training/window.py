"""What happened since the last log line: wall time by part, work done, waiting, memory.

Names as in TensorBoard. Times, shares and losses are means over ranks; data wait, communication and memory also tell the worst
rank, because everyone waits for it.
"""

import math
import resource
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch

from mri_ds.config import RunConfig, Triple
from mri_ds.training import distributed
from mri_ds.training.communication import CommunicationTimer
from mri_ds.training.nonfinite import loss_scale
from mri_ds.training.work import FlopMeter, peak_flops

ASIDE = "aside"
Out = TypeVar("Out")


class Window:
    """`with window.time("data"): ...` adds up; `scalars` tells and starts anew."""

    def __init__(self, token_stride: Triple = (8, 8, 8)) -> None:
        self.token_stride = token_stride
        self.flop_meter = FlopMeter()
        self.communication: CommunicationTimer | None = None
        self.peak: float | None = None
        self._reset()

    def _reset(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.voxels = self.tokens = self.flops = self.steps = 0
        self.since = time.perf_counter()

    def time(self, part: str) -> "_Timer":
        return _Timer(self.seconds, part)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What happens in here, such as validation, is no time of training, and its messages are no communication of it."""
        timer = self.communication
        with self.time(ASIDE), timer.paused() if timer is not None else nullcontext():
            yield

    def forward(self, run: Callable[[], Out], shape: tuple[int, ...]) -> Out:
        """One forward pass of a micro-batch whose image is of `shape`, (B, C, D, H, W)."""
        with self.time("forward"):
            out, flops = self.flop_meter.forward(run, shape)
        self.flops += flops
        self.voxels += math.prod(shape)
        self.tokens += shape[0] * math.prod(token_grid(shape[2:], self.token_stride))
        return out

    def scalars(
        self, engine: Any, config: RunConfig, loads: Mapping[str, float], losses: Mapping[str, float]
    ) -> dict[str, float]:
        """One flat dict of TensorBoard names; starts a new window. Every rank must call it, and gets the same."""
        elapsed = time.perf_counter() - self.since - self.seconds.pop(ASIDE, 0.0)
        waited = self.communication.take() if self.communication is not None else 0.0
        own = {
            **losses,
            **{f"time_share/{part}": seconds / elapsed for part, seconds in self.seconds.items()},
            "time_share/communication": waited / elapsed,
            "step_s": elapsed / self.steps,
            "memory/peak_gib": peak_memory() / 2**30,
            "flops": self.flops / elapsed,
            "voxels": self.voxels / elapsed,
            "tokens": self.tokens / elapsed,
            "peak_flops": self._peak(engine),
        }
        ranks = distributed.gather(torch.tensor([own[name] for name in sorted(own)], dtype=torch.float64))
        mean = dict(zip(sorted(own), ranks.mean(dim=0).tolist(), strict=True))
        worst = dict(zip(sorted(own), ranks.amax(dim=0).tolist(), strict=True))
        total = distributed.world_size()
        out = {"loss": mean["loss"]}
        for task in config.tasks:
            out[f"loss/{task}"] = mean[task]
            out[f"task_weight/{task}"] = mean[f"weight/{task}"]
        out["learning_rate"] = engine.get_lr()[0]
        out["loss_scale"] = loss_scale(engine)
        out["gradient_norm"] = float(engine.get_global_grad_norm() or 0.0)
        out |= {f"expert_load/{layer}": load for layer, load in loads.items()}
        out["throughput/voxels_per_s"] = mean["voxels"] * total
        out["throughput/tokens_per_s"] = mean["tokens"] * total
        out["throughput/step_s"] = mean["step_s"]
        out["throughput/flops_per_s"] = mean["flops"] * total
        out["throughput/share_of_peak"] = mean["flops"] / mean["peak_flops"]
        out |= {name: value for name, value in mean.items() if name.startswith("time_share/")}
        out |= {f"{name}_worst": worst[name] for name in ("time_share/data", "time_share/communication")}
        out["memory/peak_gib"] = worst["memory/peak_gib"]
        self._reset()
        return out

    def _peak(self, engine: Any) -> float:
        if self.peak is None:
            self.peak = peak_flops(distributed.device(), next(engine.module.parameters()).dtype)
        return self.peak


def token_grid(patch: Sequence[int], stride: Triple) -> Triple:
    """Tokens along each axis: a patch is padded up to whole ones.

    >>> token_grid((40, 56, 32), (8, 8, 8)), token_grid((20, 24, 17), (8, 8, 8))
    ((5, 7, 4), (3, 3, 3))
    """
    d, h, w = (math.ceil(size / step) for size, step in zip(patch, stride, strict=True))
    return d, h, w


def peak_memory() -> int:
    """Most bytes that this rank has held so far: of its GPU, or on a CPU of the whole process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


class _Timer:
    def __init__(self, seconds: dict[str, float], part: str) -> None:
        self.seconds, self.part = seconds, part

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *exc: object) -> None:
        self.seconds[self.part] += time.perf_counter() - self.start
