"""A training step of ours beside other people's networks: the same patch, batch and half precision, in one run, in turn.

Out, for each contender: seconds of a step (forward, backward, optimiser), voxels per second, peak memory, and the share of what
matrix products reach in the same run. Each turn is a process of its own (network_step.py); the contenders take turns,
round after round, and medians count, so that a slow minute of the machine slows all alike. CPU time is told beside the wall's:
it says how the contenders compare where other processes had the cores as well.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from mri_ds.bench.peers import PEERS
from mri_ds.bench.scaling_rank import ANSWER
from mri_ds.config import SCALES, nearest
from mri_ds.errors import InputError, RunError
from mri_ds.training.launchers import free_port

COMPILED = "+compile"
USUAL = ("small", "base", *PEERS)
TARGETS = {"SwinUNETR": 4.0, "PlainConvUNet": 2.0, "UNETR": 1.0}  # times their voxels per second, of `small`
AT = {"patch": 96, "dtype": "bfloat16"}  # where the targets hold


def bench_network(
    *,
    contenders: Sequence[str] = USUAL,
    patch: int = 96,
    batch: int = 1,
    dtype: str = "bfloat16",
    steps: int = 2,
    rounds: int = 3,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """{"contenders": {name: row}, "small_is": {name: ratios of wall and CPU time}, "targets", "passed"} and what was asked.

    contenders: scales of ours, with "+compile" behind them compiled, and names of PEERS. A peer whose package is not installed
    has a row {"absent": how to install it}. RunError when one of the processes fails.
    """
    known = [*SCALES, *(scale + COMPILED for scale in SCALES), *PEERS]
    for name in contenders:
        if name not in known:
            what = f"unknown contender {name!r}; there are {', '.join([*SCALES, *PEERS])}, {COMPILED}"
            raise InputError(what, where="--contenders", fix=nearest(name, [*SCALES, *PEERS]))
    cores = threads or len(os.sched_getaffinity(0))
    job = {"patch": patch, "batch": batch, "dtype": dtype, "steps": steps, "threads": cores}
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    for done in range(rounds):
        for number, (name, told) in enumerate(turns.items()):
            if not (told and "absent" in told[0]):
                told.append(_turn({**job, "name": name}))
            if progress:
                progress(done * len(turns) + number + 1, rounds * len(turns))
    products = [turn["product_flops_per_s"] for told in turns.values() for turn in told if "absent" not in turn]
    rate = statistics.median(products) if products else 0.0
    rows = {name: _row(told, voxels=batch * patch**3, rate=rate) for name, told in turns.items()}
    out = {**job, "rounds": rounds, "product_flops_per_s": rate, "contenders": rows}
    return out | judged(rows, holds=all(job[key] == value for key, value in AT.items()))


def judged(rows: dict[str, dict[str, Any]], *, holds: bool) -> dict[str, Any]:
    """How many times the voxels per second of each contender `small` has; the targets where they hold."""
    ours = rows.get("small", {"absent": ""})
    ratios = {}
    if "absent" not in ours:
        for name, row in rows.items():
            if name != "small" and "absent" not in row:
                ratios[name] = {"wall": row["step_s"] / ours["step_s"], "cpu": row["cpu_s"] / ours["cpu_s"]}
    passed = {name: ratios[name]["wall"] >= least for name, least in TARGETS.items() if holds and name in ratios}
    return {"small_is": ratios, "targets": TARGETS, "passed": passed}


def _row(turns: Sequence[dict[str, Any]], *, voxels: int, rate: float) -> dict[str, Any]:
    if "absent" in turns[0]:
        return turns[0]
    wall = [s for turn in turns for s in turn["step_s"]]
    step_s = statistics.median(wall)
    flops = turns[0]["flops"]
    return {
        "step_s": step_s,
        "fastest_s": min(wall),
        "slowest_s": max(wall),  # how quiet the machine was
        "cpu_s": statistics.median(s for turn in turns for s in turn["cpu_s"]),
        "voxels_per_s": voxels / step_s,
        "peak_bytes": statistics.median(turn["peak_bytes"] for turn in turns),
        "flops": flops,
        "share_of_products": flops / step_s / rate,
        "parameters": turns[0]["parameters"],
    }


def _turn(job: dict[str, Any]) -> dict[str, Any]:
    """What the process of one turn told. It is a world of one rank, for DeepSpeed."""
    names = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": free_port()}
    env = {**os.environ, **{key: str(value) for key, value in names.items()}, "MASTER_ADDR": "127.0.0.1"}
    env |= {"OMP_NUM_THREADS": str(job["threads"]), "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", "mri_ds.bench.network_step", json.dumps(job)],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    answers = [line for line in done.stdout.splitlines() if line.startswith(ANSWER)]
    if done.returncode or not answers:
        last = (done.stderr.strip().splitlines() or ["nothing on its standard error"])[-1]
        raise RunError(f"{job['name']} ended with code {done.returncode}: {last}")
    return json.loads(answers[-1].removeprefix(ANSWER))  # type: ignore[no-any-return]
