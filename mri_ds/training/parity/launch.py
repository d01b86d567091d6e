"""`mri-ds parity`: for each number of ranks one set of processes that runs all its cases, and beside them the plain runs here."""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mri_ds.training.parity import case as cases
from mri_ds.training.parity.case import Case
from mri_ds.training.parity.judge import judge, write_plain_runs
from mri_ds.training.parity.trace import Trace

RANK_PROGRAM = ["-m", "mri_ds.training.parity.rank"]
SILENCE_S = 600.0  # ranks that end no case for so long hang

Progress = Callable[[int, int], None]


def parity(
    ranks: Sequence[int], dtypes: Sequence[str], *, quick: bool = False, progress: Progress = lambda done, total: None
) -> dict[str, Any]:
    """{"passed": all of them, "rows": one dict a case, see judge.judge}. `quick` takes one case of each layout.

    A case that did not end has errors of None and "error" with the last line of the rank that failed.
    """
    choose = cases.some_cases if quick else cases.all_cases
    todo = {n: choose(n, dtypes) for n in ranks}
    every = [case for some in todo.values() for case in some]
    rows: list[dict[str, Any]] = []
    wanted = threading.Event()
    wanted.set()
    with tempfile.TemporaryDirectory(prefix="mri-ds-parity-") as folder, ThreadPoolExecutor(1) as beside:
        try:
            plain = beside.submit(write_plain_runs, Path(folder), every, wanted=wanted.is_set)
            for n, some in todo.items():
                told = functools.partial(_tell_after, progress, len(rows), len(every))
                rows += run_ranks(Path(folder) / f"ranks{n}", some, plain=Path(folder), ready=plain.result, progress=told)
        finally:
            wanted.clear()
    return {"passed": all(row["passed"] for row in rows), "rows": rows}


def _tell_after(progress: Progress, before: int, total: int, done: int) -> None:
    progress(before + done, total)


def run_ranks(
    folder: Path,
    some: Sequence[Case],
    *,
    plain: Path,
    program: Sequence[str] = RANK_PROGRAM,
    ready: Callable[[], object] = lambda: None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[dict[str, Any]]:
    """Rows of `some` cases, all of one number of ranks, from `python PROGRAM FOLDER` on each rank.

    `ready` returns once the plain runs lie in the folder `plain`.
    """
    folder.mkdir(parents=True)
    (folder / "cases.json").write_text(json.dumps([asdict(case) for case in some]))
    ended = lambda: len(list(folder.glob("trace*.pt")))  # noqa: E731
    failure = wait_for_ranks(folder, some[0].ranks, program=program, ended=ended, progress=progress)
    ready()
    blank = dict.fromkeys(("gradient_error", "gradient_distance", "norm_error", "loss_error", "update_error"))
    rows = []
    for number, case in enumerate(some):
        trace = folder / f"trace{number}.pt"
        if trace.exists():
            rows.append(judge(case, Trace.load(trace), plain))
            trace.unlink()
        else:
            rows.append({**asdict(case), **blank, "worst": "", "passed": False, "error": failure})
    return rows


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


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
