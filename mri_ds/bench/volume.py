"""What one large volume costs in one call: the time of the whole network, and the memory of the whole process at its peak.

Axes: D H W voxels, K classes.
Random weights and numbers, in bfloat16 and without a graph; what is reported is Linux's highest mark of the resident set, from
the start of the process to the end of the call, so it holds the libraries, the weights, the image and the answers too.
"""

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mri_ds.config import ModelConfig, TaskConfig, load_config
from mri_ds.mri_network import BaseMRINet

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def bench_volume(
    *, scale: str = "small", edges: Sequence[int] = (256,), classes: int = 7, dtype: str = "bfloat16", seed: int = 0
) -> dict[str, Any]:
    """One forward pass for each volume of `edges`, ascending since a process's highest mark never falls: {"rows": [{"edge",
    "peak_bytes", "before_bytes", "seconds", "cpu_seconds", "outputs", "is_finite"}]}.

    Windowed attention, as the number of tokens grows with the cube of the edge; tasks are a segmentation into `classes` and a
    regression.
    """
    torch.manual_seed(seed)
    model: ModelConfig = load_config(scale=scale, overrides=["model.attention=windowed"]).model
    tasks = {
        "tissue": TaskConfig(kind="segmentation", classes=[f"class{i}" for i in range(classes)]),
        "age": TaskConfig(kind="regression", unit="years"),
    }
    net = BaseMRINet(model, tasks).eval().to(DTYPES[dtype])
    parameters = sum(p.numel() for p in net.parameters())
    return {
        "scale": scale, "dtype": dtype, "classes": classes, "parameters": parameters, "threads": torch.get_num_threads(),
        "rows": [_row(net, edge, DTYPES[dtype]) for edge in sorted(edges)],
    }  # fmt: skip


@torch.no_grad()
def _row(net: BaseMRINet, edge: int, dtype: torch.dtype) -> dict[str, Any]:
    image = torch.empty(1, 1, edge, edge, edge, dtype=dtype)
    for plane in image[0, 0]:
        plane.normal_()
    before, start, start_cpu = status_bytes("VmRSS"), time.perf_counter(), time.process_time()
    out = net(image)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    return {
        "edge": edge,
        "before_bytes": before,
        "peak_bytes": status_bytes("VmHWM"),
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu_seconds, 3),
        "outputs": {name: list(x.shape) for name, x in out.items()},
        "is_finite": all(bool(plane.isfinite().all()) for x in out.values() for plane in x.flatten()[None].split(2**24, dim=1)),
    }


def status_bytes(key: str) -> int:
    """VmRSS or VmHWM of this process, as Linux tells."""
    match = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match, key
    return 1024 * int(match[1])
