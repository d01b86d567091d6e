"""Training as one writes it without DeepSpeed: one process, AdamW, one cycle of the learning rate, for a given time.

Axes: B batch.
In: an objective and its micro-batches.  Out: the objective, trained, and how many updates there was time for.
The learning rate follows the clock, so that whoever computes faster sees more, and everyone ends with the rate at its lowest.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from mri_ds.sample import Batch

BETAS = (0.9, 0.98)
CLIP = 1.0  # of the gradient's norm


@dataclass(frozen=True)
class Cycle:
    """Linear up to `lr` in the first `warmup` of the way, then along a cosine to `lowest` times it."""

    lr: float
    warmup: float = 0.1
    lowest: float = 0.01

    def at(self, share: float) -> float:
        """share 0..1 of the way.

        >>> [round(Cycle(1.0, 0.5).at(share), 3) for share in (0.25, 0.5, 0.75, 1.0)]
        [0.5, 1.0, 0.505, 0.01]
        """
        if share < self.warmup:
            return self.lr * share / self.warmup
        turn = math.pi * (share - self.warmup) / (1 - self.warmup)
        return self.lr * (self.lowest + (1 - self.lowest) * (1 + math.cos(turn)) / 2)


def fit(
    objective: nn.Module,
    batches: Iterator[Batch],
    cycle: Cycle,
    *,
    deadline: float,
    began: float,
    accumulation: int = 1,
    weight_decay: float = 0.02,
    bf16: bool = False,
    max_steps: int | None = None,
) -> int:
    """Updates until the clock (time.perf_counter) would pass `deadline` with the next one, at least one; returns their number.

    began: when the clock was started, what came before the first update included. max_steps: the way is so many updates long.
    """
    device = next(objective.parameters()).device
    optimizer = torch.optim.AdamW(_groups(objective, weight_decay), lr=cycle.lr, betas=BETAS)
    steps, first = 0, time.perf_counter()
    objective.train()
    while True:
        now = time.perf_counter()
        is_over = steps >= max_steps if max_steps is not None else now + (now - first) / max(steps, 1) > deadline
        if steps and is_over:
            objective.eval()
            return steps
        share = steps / max_steps if max_steps is not None else min(1.0, (now - began) / max(deadline - began, 1e-9))
        for group in optimizer.param_groups:
            group["lr"] = cycle.at(share)
        for _ in range(accumulation):
            batch = next(batches)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                loss = objective(batch)["loss"] / accumulation
            loss.backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        steps += 1


def _groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weight decay for matrices and kernels alone."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
