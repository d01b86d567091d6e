"""What ZeRO-3 with expert parallelism costs, beside one plain PyTorch process on the same cores and the same global batch.

Out: seconds of a weight update, and of the CPU time in it, for `plain` (one process, two threads, no DeepSpeed) and for two ranks
of one thread each with ZeRO-3 and with ZeRO-0; what a checkpoint costs; and weak scaling: 1, 2 and 4 ranks with one subject each,
beside what the machine itself allows, told by matrix products on as many processes at once. All processes live throughout and
wait while it is not their turn; rounds take turns, medians count, so that a slow minute of the machine slows all alike. Experts
are evenly loaded, as training keeps them: with those of a new router one rank would wait for the other's.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mri_ds.bench.scaling_rank import ANSWER
from mri_ds.training.ds_config import supports_bf16
from mri_ds.training.launchers import free_port

Progress = Callable[[int, int], None]
DS_CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"
TARGETS = {"speed_of_plain": 0.9, "zero3_over_zero0": 1.25, "checkpoint_stall": 0.05}  # at least, at most, less than
EVERY = 100  # steps between checkpoints
PRODUCTS = 20
PARTS = ("targets", "weak")


class Team:
    """Ranks that were started together and do the same at the same time."""

    def __init__(self, ranks: int, stack: ExitStack, **job: Any) -> None:
        port = str(free_port())
        self.ranks, self.samples = ranks, ranks * job["micro_batch"]
        self.cpu_s = 0.0
        self.members = [stack.enter_context(self._start(rank, port, job)) for rank in range(ranks)]
        for member in self.members:
            stack.callback(member.kill)

    def _start(self, rank: int, port: str, job: dict[str, Any]) -> "subprocess.Popen[str]":
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": self.ranks, "LOCAL_WORLD_SIZE": self.ranks}
        env = {**os.environ, **{key: str(value) for key, value in names.items()}, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env |= {"OMP_NUM_THREADS": str(job["threads"]), "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
        command = [sys.executable, "-m", "mri_ds.bench.scaling_rank", json.dumps(job)]
        return subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1
        )

    def ask(self, what: str) -> float:
        """Seconds that the slowest member took; `cpu_s` is then what all worked. Raises RuntimeError when one has ended."""
        for member in self.members:
            assert member.stdin is not None
            member.stdin.write(f"{what}\n")
            member.stdin.flush()
        told = [self._answer(member) for member in self.members]
        self.cpu_s = sum(cpu for _, cpu in told)
        return max(wall for wall, _ in told)

    def _answer(self, member: "subprocess.Popen[str]") -> tuple[float, float]:
        assert member.stdout is not None
        for line in member.stdout:
            if line.startswith(ANSWER):
                wall, cpu = json.loads(line.removeprefix(ANSWER))
                return float(wall), float(cpu)
        raise RuntimeError(f"a rank of {self.ranks} ended with code {member.wait()}")


def bench_scaling(
    *,
    scale: str = "small",
    global_batch: int = 4,
    patch: int = 64,
    steps: int = 5,
    rounds: int = 5,
    weak: Sequence[int] = (1, 2, 4),
    parts: Sequence[str] = PARTS,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measures the wanted `parts` of PARTS on this machine's CPU; `steps` updates to a turn, `rounds` turns each."""
    bf16 = supports_bf16() and scale != "tiny"
    common = {"scale": scale, "patch": patch, "bf16": bf16, "ds_config": str(DS_CONFIGS / f"{scale}.json")}
    precision = [f"bf16.enabled={str(bf16).lower()}", "fp16.enabled=false", "activation_checkpointing.level=none"]
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mri-ds-bench-"))

        def team(ranks: int, batch: int, stage: int = 3, *, plain: bool = False) -> Team:
            sets = [f"training.global_batch={batch}", "model.token_stride=[8,8,8]", "training.steps=1000"]
            job = common | {
                "sets": sets,
                "ds": [f"zero_optimization.stage={stage}", *precision],
                "plain": plain,
                "folder": folder,
            }
            return Team(ranks, stack, micro_batch=batch // ranks, threads=2 if plain else 1, **job)

        teams: dict[str, Team] = {}
        if "targets" in parts:
            teams |= {
                "plain": team(1, global_batch, plain=True),
                "zero3": team(2, global_batch),
                "zero0": team(2, global_batch, 0),
            }
        if "weak" in parts:
            teams |= {f"weak{ranks}": team(ranks, ranks) for ranks in weak}
        seconds = _take_turns(teams, steps, rounds, progress)
    median = {name: statistics.median(found) for name, found in seconds.items()}
    rows = {name: _row(each, median[name], seconds[name], median[f"cpu {name}"]) for name, each in teams.items()}
    out: dict[str, Any] = {**common, "global_batch": global_batch, "steps": steps, "rounds": rounds, "passed": {}}
    if "targets" in parts:
        out |= _judged(rows, median)
    if "weak" in parts:
        out["weak"] = [_weak(rows, median, ranks) for ranks in weak]
    return out


def _take_turns(teams: dict[str, Team], steps: int, rounds: int, progress: Progress | None) -> dict[str, list[float]]:
    """Seconds of each turn, by what was done."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for each in teams.values():
        each.ask("steps 2")  # kernels, buckets, allocator
    for done in range(rounds):
        for name, each in teams.items():
            seconds[name].append(each.ask(f"steps {steps}") / steps)
            seconds[f"cpu {name}"].append(each.cpu_s / steps)
            if name.startswith("weak"):
                seconds[f"product {name}"].append(each.ask(f"product {PRODUCTS}") / PRODUCTS)
        if "zero3" in teams:
            seconds["save"].append(teams["zero3"].ask(f"save {steps}") - steps * seconds["zero3"][-1])
        if progress:
            progress(done + 1, rounds)
    return seconds


def _row(team: Team, step_s: float, turns: Sequence[float], cpu_s: float) -> dict[str, Any]:
    """`fastest_s` and `slowest_s` tell how quiet the machine was; `cpu_s` of all ranks hardly depends on that."""
    told = {"ranks": team.ranks, "samples": team.samples, "step_s": step_s, "samples_per_s": team.samples / step_s}
    return told | {"fastest_s": min(turns), "slowest_s": max(turns), "cpu_s": cpu_s}


def _judged(rows: dict[str, Any], median: dict[str, float]) -> dict[str, Any]:
    found = {
        "speed_of_plain": rows["zero3"]["samples_per_s"] / rows["plain"]["samples_per_s"],
        "zero3_over_zero0": median["zero3"] / median["zero0"],
        "checkpoint_stall": max(0.0, median["save"]) / (EVERY * median["zero3"]),
    }
    passed = {
        name: value >= TARGETS[name] if name == "speed_of_plain" else value <= TARGETS[name] for name, value in found.items()
    }
    return {
        "teams": {name: rows[name] for name in ("plain", "zero3", "zero0")},
        "found": found,
        "targets": TARGETS,
        "passed": passed,
    }


def _weak(rows: dict[str, Any], median: dict[str, float], ranks: int) -> dict[str, float]:
    """`efficiency` of 1 is as many times the samples as ranks; `machine` is the same for products that do not communicate."""
    return {
        "ranks": ranks,
        "samples_per_s": rows[f"weak{ranks}"]["samples_per_s"],
        "efficiency": median["weak1"] / median[f"weak{ranks}"],
        "machine": median["product weak1"] / median[f"product weak{ranks}"],
    }
