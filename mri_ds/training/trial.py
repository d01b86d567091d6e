"""Does one micro-batch fit? Tried by a forward and a backward pass in a process of its own, which may die of it.

A pass without room ends in an error of whoever allocates (CUDA, PyTorch, C++, the system), in an abort of a library that cannot
say so, or by SIGKILL from the kernel's out-of-memory killer, which no process outlives. None of it touches the rank that asks:
the child tells the kernel to take it first, and leaves no memory behind, on a GPU neither.
"""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from mri_ds.config import RunConfig
from mri_ds.errors import RunError
from mri_ds.training.causes import MemoryWatch
from mri_ds.training.processes import die_with_parent

KILL_FIRST = 1000  # of /proc/PID/oom_score_adj, the most there is
BLOCK = 2**28  # bytes
SIGNS = re.compile(  # of memory that is not there, in what a process says at its end
    r"DefaultCPUAllocator: |out of memory|Cannot allocate memory|bad_alloc|MemoryError|_ALLOC_FAILED|"
    r"Thread creation failed|can't start new thread|failed to map segment",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Trial:
    """Bytes: `held` beside the pass all the time, `update` in its place after it."""

    config: str  # JSON of a RunConfig
    micro_batch: int
    precision: str
    recompute: str
    held: int
    update: int


def shortage(trial: Trial) -> str:
    """What kept `trial` from fitting on this rank's device, in words; "" where it fits.

    Raises RunError for any other failure.
    """
    child = subprocess.Popen(
        [sys.executable, "-m", "mri_ds.training.trial"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    memory = MemoryWatch(child.pid)
    said = child.communicate(json.dumps(asdict(trial)))[1]
    if child.returncode == 0:
        return ""
    if child.returncode == -signal.SIGKILL:
        return memory.verdict() or "killed"
    if SIGNS.search(said):
        return "out of memory"
    lines = said.strip().splitlines() or [f"exit code {child.returncode}"]
    raise RunError(f"trying micro-batch {trial.micro_batch} failed: {lines[-1]}")


def speaks_of_memory(err: BaseException) -> bool:
    return isinstance(err, torch.OutOfMemoryError | MemoryError) or SIGNS.search(str(err)) is not None


def attempt(trial: Trial) -> None:
    """The pass itself, in this process."""
    from mri_ds.training import distributed
    from mri_ds.training.engine import build_objective
    from mri_ds.training.plan.trace import DTYPES, cast, make_batch

    config, device = RunConfig.model_validate_json(trial.config), distributed.device()
    held = list(_written(trial.held, device))
    objective = build_objective(config)
    cast(objective, DTYPES[trial.precision])
    objective.to(device).net.encoder.recompute = trial.recompute  # type: ignore[union-attr, assignment]
    for p in objective.parameters():
        p.register_post_accumulate_grad_hook(_forget_gradient)  # gradients are among what is held
    with torch.device(device):
        batch = make_batch(config, trial.micro_batch)
    for value in (*batch["targets"].values(), batch["image"]):
        value.zero_()
    batch["spacing_mm"].fill_(1)
    for weight in batch["mask"].values():
        weight.fill_(1)
    objective(batch)["loss"].backward()
    held += _written(trial.update, device)


def _written(size: int, device: torch.device) -> Iterator[torch.Tensor]:
    """`size` bytes in blocks, written to: a system gives memory only then, and its killer comes only then."""
    for start in range(0, size, BLOCK):
        yield torch.full((min(BLOCK, size - start),), 1, dtype=torch.uint8, device=device)


def _forget_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None


def main() -> None:
    die_with_parent(signal.SIGKILL)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(KILL_FIRST))
    attempt(Trial(**json.loads(sys.stdin.read())))


if __name__ == "__main__":
    main()
