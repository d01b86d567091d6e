"""Many subjects as files: processes that share the work, and a table that marks a whole cohort.

In: a function that writes one subject and returns its row.  Out: the folder layout that `data/layouts` reads.
"""

import os
import signal
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import yaml

from mri_ds.errors import InputError

Progress = Callable[[int, int], None]  # (done, total)


def write_cohort(
    out: Path,
    write: Callable[[int], str],
    *,
    num_subjects: int,
    columns: list[str],
    description: Mapping[str, Any],
    num_workers: int | None,
    progress: Progress | None,
) -> None:
    """Calls write(0) to write(num_subjects - 1), then writes dataset.yaml (`description`) and participants.tsv into `out`.

    The table comes last, so that it marks a whole cohort: an interrupted call leaves none, and no process.
    Raises InputError for a folder that cannot be written.
    """
    table = out / "participants.tsv"
    try:
        out.mkdir(parents=True, exist_ok=True)
        table.unlink(missing_ok=True)
    except OSError as err:
        raise InputError(f"cannot be written ({err.strerror})", where=out, fix="give a folder you can write to") from None
    report = (lambda done: progress(done, num_subjects)) if progress is not None else (lambda done: None)
    rows = _write_all(write, num_subjects, num_workers, report)
    (out / "dataset.yaml").write_text(yaml.safe_dump(dict(description), sort_keys=False))
    partial_table = table.with_name(".participants.tsv.partial")
    partial_table.write_text("\n".join(["\t".join(columns), *rows]) + "\n")
    partial_table.replace(table)


def _write_all(
    write: Callable[[int], str], num_subjects: int, num_workers: int | None, report: Callable[[int], None]
) -> list[str]:
    """The rows of all subjects, in order."""
    rows: list[str] = []
    workers = min(num_workers or len(os.sched_getaffinity(0)), num_subjects)
    if workers <= 1:
        for number in range(num_subjects):
            rows.append(write(number))
            report(len(rows))
        return rows
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent)
    try:
        for row in pool.map(write, range(num_subjects)):
            rows.append(row)
            report(len(rows))
    except BrokenProcessPool as err:
        raise RuntimeError("a process was ended from outside, most often for lack of memory: use fewer workers") from err
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C waits for the subjects in hand, not for all that are queued
    return rows


def _end_with_parent() -> None:
    """In a worker: Ctrl-C is the parent's to handle, and a parent that was killed takes the worker with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
