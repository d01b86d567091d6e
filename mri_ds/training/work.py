"""How much arithmetic a step is, and how much the machine could do.

FLOPs are those of the model as written: forward counted once per shape of batch while it runs, and three times that for a step,
since the backward pass multiplies by weights and by activations. Recomputation is not counted as work done (Chowdhery et al.
2022, appendix
B: model FLOPs utilisation). Elementwise work is left out, as everywhere.
Peaks are dense, in FLOP/s per device: of data sheets for GPUs (devices.py), measured for anything else.
"""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

from mri_ds.training.devices import known_as

BACKWARD = 2  # times the forward pass
PRECISIONS = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
SIDE = 1024  # of the matrices that measure a peak
Out = TypeVar("Out")


class FlopMeter:
    """Counts the forward pass of each new shape while it runs; afterwards it costs nothing."""

    def __init__(self) -> None:
        self.by_shape: dict[tuple[int, ...], int] = {}

    def forward(self, run: Callable[[], Out], shape: tuple[int, ...]) -> tuple[Out, int]:
        """What `run` returns, and this rank's FLOPs of a step's micro-batch of `shape`, forward and backward."""
        if shape in self.by_shape:
            return run(), self.by_shape[shape]
        counter = FlopCounterMode(display=False, custom_mapping=_more_products())
        with counter:
            out = run()
        self.by_shape[shape] = (1 + BACKWARD) * counter.get_total_flops()
        return out, self.by_shape[shape]


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Of one rank's device (a CPU: with this process's threads), FLOP/s."""
    if device.type == "cuda":
        known = known_as(torch.cuda.get_device_name(device))
        if known is not None and dtype in PRECISIONS and known.flops(PRECISIONS[dtype]):
            return known.flops(PRECISIONS[dtype])
    return measured_flops(device, dtype)


def measured_flops(device: torch.device, dtype: torch.dtype, *, least_s: float = 0.05) -> float:
    """Best of several products of square matrices, FLOP/s."""
    a = torch.randn(SIDE, SIDE, device=device, dtype=torch.float32, generator=torch.Generator(device)).to(dtype)
    b, best, spent = a.t().contiguous(), 0.0, 0.0
    for number in range(1000):
        _wait(device)
        start = time.perf_counter()
        a @ b
        _wait(device)
        seconds = time.perf_counter() - start
        if number:  # the first makes ready
            best, spent = max(best, 2 * SIDE**3 / seconds), spent + seconds
        if spent > least_s and number >= 3:
            break
    return best


def _more_products() -> dict[Any, Any]:
    """Products in place, which nn.moe uses and torch does not count."""

    def addmm_(self_shape: Any, a_shape: Any, b_shape: Any, *args: Any, **kwargs: Any) -> int:
        return int(2 * a_shape[0] * a_shape[1] * b_shape[1])

    return {torch.ops.aten.addmm_: addmm_}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
