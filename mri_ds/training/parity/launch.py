"""`mri-ds parity`: plain runs here, then for each number of ranks one set of processes that runs all its cases."""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mri_ds.sample import Batch
from mri_ds.training import distributed
from mri_ds.training.engine import build_objective
from mri_ds.training.parity import case as cases
from mri_ds.training.parity.case import Case
from mri_ds.training.parity.reference import NEXT_HIGHER, plain_run

RANK_PROGRAM = ["-m", "mri_ds.training.parity.rank"]
SILENCE_S = 600.0  # ranks that end no case for so long hang

Progress = Callable[[int, int], None]


def parity(
    ranks: Sequence[int], dtypes: Sequence[str], *, quick: bool = False, progress: Progress = lambda done, total: None
) -> dict[str, Any]:
    """{"passed": all of them, "rows": one dict a case, see trace.compare}. `quick` takes one case of each layout.

    A case that did not end has errors of None and "error" with the last line of the rank that failed.
    """
    choose = cases.some_cases if quick else cases.all_cases
    todo = {n: choose(n, dtypes) for n in ranks}
    total = sum(map(len, todo.values()))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="mri-ds-parity-") as folder:
        write_plain_runs(Path(folder), dtypes)
        for n, some in todo.items():
            told = functools.partial(_tell_after, progress, len(rows), total)
            rows += run_ranks(Path(folder) / f"ranks{n}", some, plain=Path(folder), progress=told)
    return {"passed": all(row["passed"] for row in rows), "rows": rows}


def _tell_after(progress: Progress, before: int, total: int, done: int) -> None:
    progress(before + done, total)


def write_plain_runs(folder: Path, dtypes: Sequence[str]) -> None:
    """FOLDER/KIND-OPTIMIZER-DTYPE.pt of every kind in PLAIN_KINDS."""
    for dtype in dtypes:
        for optimizer in cases.LR:
            for kind in cases.PLAIN_KINDS:
                pieces = cases.GLOBAL_BATCH if kind == "single" else 1
                config = cases.run_config(optimizer)
                torch.manual_seed(cases.SEED)
                trace = plain_run(
                    build_objective(config).to(distributed.device()),
                    (whole_share(step, pieces) for step in range(1, cases.STEPS + 1)),
                    optimizer=optimizer,
                    lr=config.training.lr,
                    weight_decay=config.training.weight_decay,
                    betas=config.training.betas,
                    clip=cases.CLIP,
                    start=dtype,
                    compute=NEXT_HIGHER[dtype] if kind == "precise" else dtype,
                    watched=cases.WATCHED,
                )
                assert min(trace.norms) > cases.CLIP, "every update is to be clipped"
                trace.save(folder / f"{kind}-{optimizer}-{dtype}.pt")


def whole_share(step: int, pieces: int) -> list[Batch]:
    """The global batch of an update in equal pieces."""
    share = cases.own_share(cases.global_batch(step), rank=0, ranks=1, accumulation=pieces)
    return [distributed.to_device(batch) for batch in share]


def run_ranks(
    folder: Path,
    some: Sequence[Case],
    *,
    plain: Path,
    program: Sequence[str] = RANK_PROGRAM,
    progress: Callable[[int], None] = lambda done: None,
) -> list[dict[str, Any]]:
    """Rows of `some` cases, all of one number of ranks, from `python PROGRAM FOLDER` on each rank."""
    folder.mkdir(parents=True)
    (folder / "cases.json").write_text(json.dumps([asdict(case) for case in some]))
    for path in plain.glob("*.pt"):
        (folder / path.name).symlink_to(path)
    failure = wait_for_ranks(folder, some[0].ranks, program=program, ended=lambda: len(_rows(folder)), progress=progress)
    rows = _rows(folder)
    blank = {"gradient_error": None, "norm_error": None, "loss_error": None, "worst": "", "passed": False, "error": failure}
    return rows + [{**asdict(case), **blank} for case in some[len(rows) :]]


def wait_for_ranks(
    folder: Path, ranks: int, *, program: Sequence[str], ended: Callable[[], int], progress: Callable[[int], None]
) -> str:
    """Starts the ranks, waits for all to end, or ends them where one fails or `ended()` stands still; why they failed, or ""."""
    common = {
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // ranks)),
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    processes = []
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no rank outlives us
    try:
        for rank in range(ranks):
            with (folder / f"rank{rank}.log").open("w") as log:
                environment = {**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                command = [sys.executable, *program, str(folder)]
                processes.append(subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment))
        done, since = 0, time.monotonic()
        while any(p.poll() is None for p in processes):
            time.sleep(0.1)
            if (now := ended()) != done:
                done, since = now, time.monotonic()
                progress(done)
            for rank, p in enumerate(processes):
                if p.poll():
                    return f"rank {rank} ended with {p.returncode}: {_last_line(folder / f'rank{rank}.log')}"
            if time.monotonic() - since > SILENCE_S:
                return f"no rank ended a case for {SILENCE_S:.0f} s"
        failed = [rank for rank, p in enumerate(processes) if p.returncode]
        return f"rank {failed[0]} failed: {_last_line(folder / f'rank{failed[0]}.log')}" if failed else ""
    finally:
        for p in processes:
            if p.poll() is None:
                p.kill()
            p.wait()
        signal.signal(signal.SIGTERM, before)


def _rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / "rows.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.is_file() else []


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
