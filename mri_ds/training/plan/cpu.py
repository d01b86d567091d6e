"""This machine's CPU as a Device, measured where the plan is made."""

import os
import time
from collections.abc import Callable
from functools import lru_cache

import torch

from mri_ds.training.devices import TABLE, Device
from mri_ds.training.work import measured_flops

CPU_RUNTIME = 20e6  # glibc's heaps and oneDNN's kernels beside tensors, as seen; the kernels of new shapes come on top
KERNEL_BYTES = 0.35e6  # of each that PyTorch keeps compiled, one a shape, LRU_CACHE_CAPACITY (1,024) of them


def device(name: str) -> Device:
    """One of devices.DEVICES."""
    return measured_cpu() if name == "cpu" else TABLE[name]


@lru_cache(maxsize=1)
def measured_cpu() -> Device:
    """In about a second, with the threads that a rank has."""
    cpu = torch.device("cpu")
    return Device(
        "cpu",
        memory=float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        bf16=measured_flops(cpu, torch.bfloat16),
        fp16=measured_flops(cpu, torch.float16),
        fp32=measured_flops(cpu, torch.float32),
        bandwidth=_copy_rate(),
        link=2e9,  # gloo over loopback
        network=1e9,
        latency_s=100e-6,
        network_latency_s=200e-6,
        launch_s=5e-6,
        runtime=CPU_RUNTIME,
    )


def _copy_rate(size: int = 2**26) -> float:
    a = torch.zeros(size, dtype=torch.uint8)
    b = torch.empty_like(a)
    return 2 * size / _best(lambda: b.copy_(a))


def _best(work: Callable[[], object], repeats: int = 4) -> float:
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times[1:])
