"""What happened since the last log line: wall time by part, voxels, steps."""

import time
from collections import defaultdict
from typing import Any

from mri_ds.config import RunConfig
from mri_ds.training import distributed


class Window:
    """`with window.time("data"): ...` adds up; `scalars` tells and starts anew."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.voxels = self.steps = 0
        self.since = time.perf_counter()

    def time(self, part: str) -> "_Timer":
        return _Timer(self.seconds, part)

    def scalars(self, engine: Any, config: RunConfig, loads: dict[str, float], losses: dict[str, float]) -> dict[str, float]:
        """Averages over ranks, one flat dict of TensorBoard names; starts a new window."""
        elapsed = time.perf_counter() - self.since
        mean = distributed.average({"voxels": self.voxels / elapsed, **losses})
        out = {"loss": mean["loss"]}
        for task in config.tasks:
            out[f"loss/{task}"] = mean[task]
            out[f"task_weight/{task}"] = mean[f"weight/{task}"]
        out["learning_rate"] = engine.get_lr()[0]
        out["gradient_norm"] = float(engine.get_global_grad_norm() or 0.0)
        out |= {f"expert_load/{layer}": load for layer, load in loads.items()}
        out["throughput/voxels_per_s"] = mean["voxels"] * distributed.world_size()
        out["throughput/step_s"] = elapsed / self.steps
        out |= {f"time_share/{part}": s / elapsed for part, s in self.seconds.items()}
        self._reset()
        return out


class _Timer:
    def __init__(self, seconds: dict[str, float], part: str) -> None:
        self.seconds, self.part = seconds, part

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *exc: object) -> None:
        self.seconds[self.part] += time.perf_counter() - self.start
