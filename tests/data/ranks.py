"""Real ranks for tests of the loader: `python ranks.py CHAINS.json` forks the ranks of one job of a chain after the other.

A job: {"ranks", "workers", "folder", "start", "stop", "log", "state", "data", "pause_s", "is_killed"}. Every rank joins a gloo
group, takes the micro-batches of each step, appends one JSON line per micro-batch to LOG.RANK, and meets the others after each
step; rank 0 then writes the state. The process ids of the ranks go to LOG.pids. A job whose start is null begins where the state
says; one that is to be killed fails unless it was. Some chains run at a time.
"""

import json
import os
import signal
import sys
import time
import zlib
from datetime import timedelta
from pathlib import Path

import torch

from mri_ds.config import DataConfig
from mri_ds.data.index import ShardDataset
from mri_ds.data.loader import make_loader
from mri_ds.data.order import make_order

GLOBAL_BATCH, SEED = 12, 11
TIMEOUT_S = 60
AT_ONCE = 3  # chains: most of a rank's time is spent waiting for others


def main(chains: list[list[dict]]) -> int:
    running, codes = 0, []
    for chain in chains:
        if running == AT_ONCE:
            codes.append(os.wait()[1])
            running -= 1
        if not os.fork():
            os._exit(run_chain(chain))
        running += 1
    return int(any(codes + [os.wait()[1] for _ in range(running)]))


def run_chain(jobs: list[dict]) -> int:
    for job in jobs:
        if job["start"] is None:
            job["start"] = json.loads(Path(job["state"]).read_text())["step"]
        pids = []
        for rank in range(job["ranks"]):
            pid = os.fork()
            if not pid:
                run_rank(rank, job)
            pids.append(pid)
        Path(f"{job['log']}.pids").write_text(json.dumps(pids))
        codes = [os.waitpid(pid, 0)[1] for pid in pids]
        if codes != [signal.SIGKILL if job.get("is_killed") else 0] * len(pids):
            return 1
    return 0


def run_rank(rank: int, job: dict) -> None:
    code = 1
    try:
        show(rank, job)
        code = 0
    except BaseException as err:  # a forked child must never return into the parent's code
        print(f"rank {rank}: {type(err).__name__}: {err}", file=sys.stderr, flush=True)
    os._exit(code)


def show(rank: int, job: dict) -> None:
    world, log = job["ranks"], job["log"]
    store = torch.distributed.FileStore(f"{log}.store", world)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=TIMEOUT_S))
    dataset = ShardDataset(job["folder"], "train")
    data = DataConfig(spacing_mm=(1, 1, 1), patch=(6, 6, 6), num_workers=job["workers"], **job.get("data", {}))
    order = make_order(dataset, data, seed=SEED, global_batch=GLOBAL_BATCH)
    if job["start"]:
        order.check(json.loads(Path(job["state"]).read_text()))
    batches = make_loader(
        dataset,
        data,
        dataset.tasks,
        seed=SEED,
        global_batch=GLOBAL_BATCH,
        micro_batch=1,
        rank=rank,
        world_size=world,
        start_step=job["start"],
    )
    with open(f"{log}.{rank}", "a") as out:
        for step in range(job["start"], job["stop"]):
            for micro in range(GLOBAL_BATCH // world):
                print(json.dumps({"step": step, "place": micro * world + rank, **describe(next(batches))}), file=out, flush=True)
            time.sleep(job.get("pause_s", 0))
            torch.distributed.all_reduce(torch.ones(1))
            if rank == 0:
                part = Path(f"{job['state']}.part")
                part.write_text(json.dumps(order.state(step + 1)))
                part.replace(job["state"])


def describe(batch: dict) -> dict:
    voxels = zlib.crc32(batch["image"].numpy().tobytes())
    return {
        "id": batch["subject_id"][0],
        "voxels": zlib.crc32(batch["targets"]["tissue"].numpy().tobytes(), voxels),
        "mask": {task: mask.item() for task, mask in batch["mask"].items()},
    }


if __name__ == "__main__":
    sys.exit(main(json.loads(Path(sys.argv[1]).read_text())))
