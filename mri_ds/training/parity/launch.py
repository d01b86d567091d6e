"""`mri-ds parity`: for each number of ranks one set of processes that runs all its cases, and beside them the plain runs here.

What ended lies in a folder, case by case, so that a run that was cut short goes on there: plain runs, ranksN/traceNUMBER.pt of a
case that ran, and ranksN/rowNUMBER.json once it was judged.
"""

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
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mri_ds.errors import InputError
from mri_ds.training.parity import case as cases
from mri_ds.training.parity.case import Case
from mri_ds.training.parity.judge import judge, write_plain_runs
from mri_ds.training.parity.trace import Trace

RANK_PROGRAM = ["-m", "mri_ds.training.parity.rank"]
SILENCE_S = 600.0  # ranks that end no case for so long hang

Progress = Callable[[int, int], None]


def parity(
    ranks: Sequence[int],
    dtypes: Sequence[str],
    *,
    quick: bool = False,
    keep: Path | None = None,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """{"passed": all of them, "rows": one dict a case, see judge.judge}. `quick` takes one case of each layout.

    `keep` is where the cases that ended are kept, and not run again if they lie there already. A case that did not end has errors
    of None and "error" with the last line of the rank that failed. Raises InputError where `keep` holds other cases.
    """
    choose = cases.some_cases if quick else cases.all_cases
    todo = {n: choose(n, dtypes) for n in ranks}
    every = [case for some in todo.values() for case in some]
    rows: list[dict[str, Any]] = []
    wanted = threading.Event()
    wanted.set()
    with ExitStack() as stack:
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mri-ds-parity-")))
        folder.mkdir(parents=True, exist_ok=True)
        beside = stack.enter_context(ThreadPoolExecutor(1))
        try:
            plain = beside.submit(write_plain_runs, folder, every, wanted=wanted.is_set)
            for n, some in todo.items():
                told = functools.partial(_tell_after, progress, len(rows), len(every))
                rows += run_ranks(folder / f"ranks{n}", some, plain=folder, ready=plain.result, progress=told)
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
    """Rows of `some` cases, all of one number of ranks, from `python PROGRAM FOLDER` on each rank, but for those of FOLDER.

    `ready` returns once the plain runs lie in the folder `plain`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _check_kept(folder, some)
    row_of, trace_of = (lambda number: folder / f"row{number}.json"), (lambda number: folder / f"trace{number}.pt")
    ended = lambda: sum(row_of(n).exists() or trace_of(n).exists() for n in range(len(some)))  # noqa: E731
    todo = [n for n in range(len(some)) if not (row_of(n).exists() or trace_of(n).exists())]
    (folder / "todo.json").write_text(json.dumps(todo))
    failure = wait_for_ranks(folder, some[0].ranks, program=program, ended=ended, progress=progress) if todo else ""
    ready()
    blank = dict.fromkeys(("gradient_error", "gradient_distance", "norm_error", "loss_error", "update_error"))
    rows = []
    for number, case in enumerate(some):
        trace, row = trace_of(number), row_of(number)
        if trace.exists():
            (folder / "row.part").write_text(json.dumps(judge(case, Trace.load(trace), plain)))
            os.replace(folder / "row.part", row)
            trace.unlink()
        if row.exists():
            rows.append(json.loads(row.read_text()))
        else:
            rows.append({**asdict(case), **blank, "worst": "", "passed": False, "error": failure})
    return rows


def _check_kept(folder: Path, some: Sequence[Case]) -> None:
    """FOLDER/cases.json tells which case a number stands for."""
    told, path = json.loads(json.dumps([asdict(case) for case in some])), folder / "cases.json"
    if path.exists() and json.loads(path.read_text()) != told:
        raise InputError("other cases were run here", where=str(folder), fix="give the options of that run, or another folder")
    path.write_text(json.dumps(told))


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
