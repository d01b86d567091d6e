"""What a training step really holds and sends on this machine's ranks, to hold against `mri-ds plan`.

    deepspeed --num_accelerators 2 tools/measure_step.py --ds_config ds_configs/tiny.json --patch 64 --micro 2

Random volumes of PATCH^3 voxels, the plan's usual tasks, three steps. Prints one JSON object from rank 0: peak memory by phase
(the largest of the ranks), bytes of each collective by DeepSpeed's own count (all ranks together), seconds of the last step.

Peak, on a CPU: resident memory at its highest (VmHWM) less what was resident once everything was imported and the ranks had
joined. Memory that was freed counts again only where the C library kept it from the system: a block of less than MMAP_KIB would
stay in its heaps, so that threshold is fixed here (glibc would raise it to 32 MiB as blocks are freed).
PyTorch also keeps a compiled kernel, 0.35 MB, for every shape that a product or convolution was seen with, 1,024 of them unless
LRU_CACHE_CAPACITY says otherwise; in bf16 each number of rows of an expert is such a shape. Set it to 16 here.
On a GPU: torch.cuda.max_memory_allocated.
"""

import argparse
import ctypes
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mri_ds.training import distributed, ds_config
from mri_ds.training.engine import build_engine, build_objective
from mri_ds.training.plan.science import science_of
from mri_ds.training.plan.trace import make_batch

STEPS = 3
MMAP_KIB = 256
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1  # malloc.h


def main() -> None:
    options = parse()
    fix_malloc()
    sets = [f"data.patch=[{options.patch}, {options.patch}, {options.patch}]", *options.sets]
    config = science_of(options.scale or options.ds_config.stem, overrides=sets)
    raw = ds_config.read(options.ds_config)
    world = distributed.world_size()
    raw["train_micro_batch_size_per_gpu"] = options.micro
    config.training.global_batch = options.micro * options.accumulate * world
    if options.level:
        raw["activation_checkpointing"] = {"level": options.level}
    if options.zero is not None:
        raw["zero_optimization"]["stage"] = options.zero
    if options.bf16 is not None:
        raw["bf16"] = {"enabled": bool(options.bf16)}
    raw["comms_logger"] = {"enabled": True, "verbose": False, "prof_all": True}
    distributed.start(timeout_s=600)
    warm_up(raw, world)
    resolved = ds_config.resolve(raw, config, world_size=world)
    memory = Memory()
    torch.manual_seed(0)
    engine = build_engine(build_objective(config), resolved)
    phases = {"start": memory.peak()}
    batch = random_batch(config, options.micro)
    for step in range(STEPS):
        if step == STEPS - 1:
            sent_before = sent()
        began = time.perf_counter()
        for _ in range(options.accumulate):
            loss = engine(batch)["loss"]
            engine.backward(loss)
            engine.step()
        seconds = time.perf_counter() - began
        phases["first step" if step == 0 else "later steps"] = memory.peak()
    now = sent()
    total = distributed.gather(torch.tensor([float(now[name] - sent_before.get(name, 0)) for name in sorted(now)])).sum(dim=0)
    peaks = distributed.gather(torch.tensor([float(v) for v in phases.values()])).max(dim=0).values.tolist()
    if distributed.rank() == 0:
        result = {
            "peak_bytes": max(peaks),
            "phases": dict(zip(phases, peaks)),
            "sent_bytes": dict(zip(sorted(now), total.tolist())),
            "step_s": seconds,
            "baseline_bytes": memory.base,
            "ranks": world,
        }
        print(json.dumps(result))
    distributed.stop()


def warm_up(raw: dict[str, Any], world: int) -> None:
    """A step of the smallest network, so that what is imported, compiled and started on the way is there."""
    config = science_of("tiny", overrides=["data.patch=[16, 16, 16]", "model.num_layers=1"])
    config.training.global_batch = raw["train_micro_batch_size_per_gpu"] * world
    engine = build_engine(build_objective(config), ds_config.resolve(raw, config, world_size=world))
    for _ in range(2):
        engine.backward(engine(random_batch(config, 1))["loss"])
        engine.step()
    engine.destroy()
    del engine
    gc.collect()


class Memory:
    """Peaks over where it stood when this was made; each reading starts the next."""

    def __init__(self) -> None:
        self.is_gpu = torch.cuda.is_available()
        self.base = 0 if self.is_gpu else status("VmRSS")
        self._restart()

    def peak(self) -> int:
        peak = torch.cuda.max_memory_allocated() if self.is_gpu else status("VmHWM") - self.base
        self._restart()
        return peak

    def _restart(self) -> None:
        if self.is_gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM = VmRSS


def status(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def fix_malloc() -> None:
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, MMAP_KIB * 1024)
    libc.mallopt(M_TRIM_THRESHOLD, MMAP_KIB * 1024)


def sent() -> dict[str, int]:
    """Bytes so far by collective, as DeepSpeed's communication log counts them: the size of the message."""
    from deepspeed import comm

    logger = comm.comm.comms_logger
    return {name: sum(size * counts[0] for size, counts in sizes.items()) for name, sizes in logger.comms_dict.items()}


def random_batch(config: Any, micro: int) -> Any:
    batch = make_batch(config, micro)
    batch["image"].normal_()
    batch["spacing_mm"].fill_(1)
    for name, task in config.tasks.items():
        target = batch["targets"][name]
        if task.kind == "regression":
            target.normal_()
        else:
            target.random_(0, len(task.classes))
        batch["mask"][name].fill_(1)
    move = distributed.device()
    return {
        key: {k: v.to(move) for k, v in value.items()} if isinstance(value, dict) else value.to(move)  # type: ignore[attr-defined]
        for key, value in batch.items()
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--ds_config", type=Path, required=True)
    parser.add_argument("--scale")
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--micro", type=int, default=1)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--zero", type=int)
    parser.add_argument("--bf16", type=int)
    parser.add_argument("--level")
    parser.add_argument("--set", dest="sets", action="append", default=[])
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
