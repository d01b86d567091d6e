"""How much memory this rank may still take: of its GPU, or its share of the host's within every limit that is set for it.

A cgroup counts the page cache, too, which the kernel gives back before it kills: inactive_file is free.
Source: Linux, Documentation/admin-guide/cgroup-v2.rst (memory.max, memory.current, memory.stat) and cgroup-v1/memory.rst.
"""

import resource
from collections.abc import Iterator
from pathlib import Path

import torch

from mri_ds.training import distributed

CGROUP = Path("/sys/fs/cgroup")


def free_bytes() -> int:
    """Of a GPU all that is free, as one rank has it; of a host its share, as ranks of the same node take equal parts."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info(distributed.device())[0])
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    shared = min([int(lines["MemAvailable"].split()[0]) * 1024, *_left_in_groups(Path("/proc/self/cgroup"), CGROUP)])
    free = shared // max(1, distributed.local_world_size())
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return free
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return min(free, max(0, limit - used))


def _left_in_groups(own: Path, root: Path) -> Iterator[int]:
    """Bytes left in the memory cgroup of this process and in each above it, either version; nothing where none sets a limit."""
    for line in own.read_text().splitlines():
        _, controllers, name = line.split(":", 2)
        if "memory" in controllers.split(","):
            top, usage, limit = root / "memory", "memory.usage_in_bytes", "memory.limit_in_bytes"
        elif not controllers:
            top, usage, limit = root, "memory.current", "memory.max"
        else:
            continue
        group = top / name.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(top):
                break
            left = _left(folder, usage, limit)
            if left is not None:
                yield left


def _left(folder: Path, usage: str, limit: str) -> int | None:
    try:
        allowed, used = (folder / limit).read_text().strip(), int((folder / usage).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:  # the group of another namespace, or the controller is not on
        return None
    if allowed == "max":
        return None
    cache = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
    return max(0, int(allowed) - used + cache)
