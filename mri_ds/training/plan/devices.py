"""What devices and their links can do: a table from data sheets, and a CPU that is measured where the plan is made.

Sources: data sheets of NVIDIA's H200, H100 (SXM5) and A100 (SXM4, 80 GB), rates without sparsity; links per device and direction:
NVLink 4 and 3, and one network card of 400 (H) or 200 Gbit/s (A) for each GPU, as in NVIDIA's DGX systems.
A product reaches a share of the peak only: SHARE is what large bf16 products of this shape reach in PyTorch, not a promise.
"""

import os
import time
from dataclasses import dataclass
from functools import lru_cache

import torch

SHARE = 0.5  # of the peak rate that products and convolutions reach, of bandwidth that the rest does


@dataclass(frozen=True)
class Device:
    """Rates in 1/s: floating-point operations, bytes. `runtime` is what libraries take of `memory`, beside tensors."""

    name: str
    memory: float
    bf16: float
    fp32: float
    bandwidth: float
    link: float  # to a rank of the same node
    network: float  # to a rank of another node
    latency_s: float  # of a message in a node
    network_latency_s: float
    launch_s: float  # of an operator, from Python
    runtime: float
    share: float = SHARE

    def flops(self, precision: str) -> float:
        return self.fp32 if precision == "fp32" else self.bf16


#                         memory   bf16     fp32     bandwidth link    network latencies  launch  runtime
TABLE = {
    "h200": Device("h200", 141e9, 989e12, 67e12, 4.80e12, 450e9, 50e9, 8e-6, 20e-6, 6e-6, 1.5e9),
    "h100": Device("h100", 80e9, 989e12, 67e12, 3.35e12, 450e9, 50e9, 8e-6, 20e-6, 6e-6, 1.5e9),
    "a100": Device("a100", 80e9, 312e12, 19.5e12, 2.04e12, 300e9, 25e9, 8e-6, 20e-6, 7e-6, 1.5e9),
}
DEVICES = [*TABLE, "cpu"]
CPU_RUNTIME = 20e6  # glibc's heaps and oneDNN's kernels beside tensors, as seen; the kernels of new shapes come on top
KERNEL_BYTES = 0.35e6  # of each that PyTorch keeps compiled, one a shape, LRU_CACHE_CAPACITY (1,024) of them


def device(name: str) -> Device:
    return measured_cpu() if name == "cpu" else TABLE[name]


@lru_cache(maxsize=1)
def measured_cpu() -> Device:
    """This machine's, in about a second, with the threads that a rank has."""
    return Device(
        "cpu",
        memory=float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        bf16=_product_rate(torch.bfloat16),
        fp32=_product_rate(torch.float32),
        bandwidth=_copy_rate(),
        link=2e9,  # gloo over loopback
        network=1e9,
        latency_s=100e-6,
        network_latency_s=200e-6,
        launch_s=5e-6,
        runtime=CPU_RUNTIME,
    )


def _product_rate(dtype: torch.dtype, size: int = 1024) -> float:
    a = torch.ones(size, size, dtype=dtype)
    return 2 * size**3 / _best(lambda: a @ a)


def _copy_rate(size: int = 2**26) -> float:
    a = torch.zeros(size, dtype=torch.uint8)
    b = torch.empty_like(a)
    return 2 * size / _best(lambda: b.copy_(a))


def _best(work: object, repeats: int = 4) -> float:
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()  # type: ignore[operator]
        times.append(time.perf_counter() - start)
    return min(times[1:])
