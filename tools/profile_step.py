"""Where the time of a training step goes, by torch.profiler on real ranks.

    deepspeed --num_accelerators 2 tools/profile_step.py --ds_config ds_configs/small.json --data data/demo/shards

Prints one JSON object from rank 0: seconds per step, the share of forward, backward, optimiser and data, the share during which a
collective was under way (inside the others), and the dearest operators by their own time.
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mri_ds.config import load_config
from mri_ds.data.index import ShardDataset
from mri_ds.data.loader import make_loader
from mri_ds.data.manifest import read_manifest
from mri_ds.training import distributed, ds_config, loop
from mri_ds.training.engine import build_engine, build_objective
from mri_ds.training.window import Window

WARM_UP = 4
PARTS = {"data": "data", "forward": "forward", "backward": "backward", "step": "optimiser"}


def main() -> None:
    options = parse()
    config = load_config(options.config, overrides=options.sets, scale=options.scale or options.ds_config.stem)
    config = loop.complete(config, read_manifest(options.data), where=options.data)
    world, rank = distributed.world_size(), distributed.rank()
    resolved = ds_config.resolve(ds_config.read(options.ds_config), config, world_size=world)
    distributed.start(600)
    torch.manual_seed(config.training.seed)
    engine = build_engine(build_objective(config), resolved)
    batches = make_loader(
        ShardDataset(options.data, "train"),
        config.data,
        config.tasks,
        seed=0,
        global_batch=config.training.global_batch,
        micro_batch=resolved["train_micro_batch_size_per_gpu"],
        rank=rank,
        world_size=world,
    )
    for _ in range(WARM_UP):
        loop.train_step(engine, batches, Window())
    window = Window()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    with profile(activities=activities) as trace:
        began = time.perf_counter()
        for _ in range(options.steps):
            loop.train_step(engine, batches, window)
        elapsed = time.perf_counter() - began
    if rank == 0:
        print(json.dumps(report(trace, window, elapsed, options.steps), indent=1))
    distributed.stop()


def report(trace: Any, window: Window, elapsed: float, steps: int) -> dict[str, Any]:
    """The profile in figures a person can act on."""
    own: dict[str, float] = defaultdict(float)
    spans = []
    for event in trace.events():
        if event.name.startswith(("gloo:", "nccl:")):
            spans.append((event.time_range.start, event.time_range.end))
        elif event.name not in PARTS:
            own[event.name] += event.self_cpu_time_total / 1e6
    dearest = sorted(own.items(), key=lambda item: -item[1])[:12]
    return {
        "seconds_per_step": round(elapsed / steps, 3),
        "share": {PARTS[part]: round(s / elapsed, 3) for part, s in window.seconds.items()},
        "communication": round(covered(spans) / 1e6 / elapsed, 3),
        "own_time": {name: round(s / elapsed, 3) for name, s in dearest},
    }


def covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of the spans."""
    total, reach = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reach))
        reach = max(reach, end)
    return total


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--ds_config", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--scale")
    parser.add_argument("--set", dest="sets", action="append", default=[])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
