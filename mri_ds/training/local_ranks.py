"""The ranks of one machine: how many it takes, and what each is told of its place, its device and its cores."""

import os
import re
import subprocess
import sys
from pathlib import Path

from mri_ds.training import launchers

NUMA = Path("/sys/devices/system/node")
NOT_OURS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")  # what a shell may still hold from another run


def is_started_by_a_launcher(environ: launchers.Environ) -> bool:
    """Whether deepspeed, torchrun, srun or mpirun (or this package's own supervisor) made this process one of its ranks."""
    return "RANK" in environ or int(environ.get("WORLD_SIZE") or 1) > 1 or launchers.find(environ) is not None


def choose(global_batch: int) -> int:
    """Ranks for this machine: one per GPU; without GPUs one per NUMA node. As many of them as share the batch evenly."""
    devices = num_gpus() or len(numa_nodes()) or 1
    return max(count for count in range(1, devices + 1) if global_batch % count == 0)


def num_gpus() -> int:
    """GPUs that torch may use; 0 where DS_ACCELERATOR says cpu. Torch is asked only where a driver is: its import is slow."""
    drivers = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA, AMD, Windows' subsystem for Linux
    if os.environ.get("DS_ACCELERATOR") == "cpu" or not any(map(os.path.exists, drivers)):
        return 0
    count = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    return int(subprocess.run(count, capture_output=True, text=True, check=True, timeout=300).stdout.split()[-1])


def numa_nodes() -> list[set[int]]:
    """The cores of each NUMA node that this process may use."""
    allowed = os.sched_getaffinity(0)
    nodes = [_cores((node / "cpulist").read_text()) & allowed for node in sorted(NUMA.glob("node[0-9]*"))]
    return [cores for cores in nodes if cores]


def cores_of(rank: int, ranks: int) -> set[int]:
    """Where a CPU rank runs: its own NUMA node where there is one for each, else anywhere."""
    nodes = numa_nodes()
    return nodes[rank] if len(nodes) == ranks > 1 else os.sched_getaffinity(0)


def environment(rank: int, ranks: int, port: int, *, on_gpu: bool) -> dict[str, str]:
    """Variables of one rank, on top of this process's own. Threads that nobody chose are shared out."""
    package = str(Path(__file__).resolve().parents[2])
    own = {name: value for name, value in os.environ.items() if name not in NOT_OURS}
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    threads = len(cores_of(rank, ranks)) // (1 if len(numa_nodes()) == ranks else ranks)
    return {
        "OMP_NUM_THREADS": str(max(1, threads)),
        **({} if on_gpu else {"DS_ACCELERATOR": "cpu"}),
        **own,
        **{name: str(value) for name, value in place.items()},
        "MASTER_ADDR": "127.0.0.1",
        "PYTHONPATH": os.pathsep.join(
            [package, *filter(None, [own.get("PYTHONPATH")])]
        ),  # works from a checkout, as launch/train.py
        "PYTHONUNBUFFERED": "1",
    }


def _cores(listed: str) -> set[int]:
    """ "0-3,8" -> {0, 1, 2, 3, 8}"""
    ranges = (re.fullmatch(r"(\d+)(?:-(\d+))?", part) for part in listed.strip().split(",") if part)
    return {core for one in ranges if one for core in range(int(one[1]), int(one[2] or one[1]) + 1)}
