"""What people and machines see of a command: results on stdout, everything else on stderr.

A person at a terminal gets progress bars; a log file gets a plain line now and then; `--json` gets one object on stdout.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mri_ds.errors import InputError
from mri_ds.quiet import is_quiet

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_LINE_EVERY_S = 5.0
PIPED_WIDTH = 1000  # columns; rich would cut at 80

Progress = Callable[[int, int], None]  # (done, total)


def print_json(result: Any) -> None:
    """One JSON object on one line of stdout. NaN and infinity, which JSON has not, become null."""
    print(json.dumps(_finite(result), allow_nan=False), flush=True)


def print_error(err: Exception) -> None:
    """One line on stderr; under a launcher every rank but the first says which one it is."""
    rank = os.environ.get("RANK", "0")
    print(f"error: {err}" if rank == "0" else f"error (rank {rank}): {err}", file=sys.stderr, flush=True)


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "", left: int = 1) -> None:
    """A table on stdout. The first `left` columns begin at the left, the others, numbers, end at the right. No headings: none.

    As wide as the terminal, where long text is wrapped; piped, as wide as it is: a line of the file is a row of the table.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    is_terminal = sys.stdout.isatty()
    box = SIMPLE_HEAD if is_terminal else None
    table = Table(title=title or None, title_justify="left", box=box, pad_edge=False, show_header=bool(headings))
    width = len(headings or next(iter(rows), ()))
    for number, heading in enumerate(headings or [""] * width):
        is_last = number == width - 1
        table.add_column(
            heading, justify="left" if number < left else "right", overflow="fold", no_wrap=not (is_last and number < left)
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    if is_terminal:
        Console().print(table)
        return
    console = Console(width=PIPED_WIDTH, color_system=None)
    with console.capture() as text:
        console.print(table)
    print("\n".join(line.rstrip() for line in text.get().splitlines()))


def print_findings(findings: Sequence[Any]) -> None:
    """What was found, a dataclass each: a table on a terminal; elsewhere a line each, to search in."""
    if not sys.stdout.isatty() or not findings:
        for finding in findings:
            print(finding)
        return
    told = [asdict(finding) for finding in findings]
    print_table(list(told[0]), [[str(value) for value in one.values()] for one in told], left=len(told[0]))


def stdout() -> "Console":
    """For tables of others: as wide as the terminal, or piped as wide as they are."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)


@contextmanager
def stdout_for_result() -> Iterator[None]:
    """While it lasts, whatever libraries print (DeepSpeed's log, gloo's C++ notices) goes to stderr instead of stdout."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


@contextmanager
def progress(label: str, unit: str = "") -> Iterator[Progress]:
    """Yields `report(done, total)`: a bar on a terminal's stderr, elsewhere a line every 5 s and at the end; with the rate."""
    if is_quiet():
        yield lambda done, total: None
        return
    if not sys.stderr.isatty():
        yield _plain_lines(label, unit)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    rate = _Rate(unit)
    with Progress(*columns, console=Console(stderr=True)) as bars:
        bar = bars.add_task(label, total=None, rate="")
        yield lambda done, total: bars.update(bar, completed=done, total=total, rate=rate.text(time.monotonic(), done))


def output_folder(path: Path) -> Path:
    """Makes the folder a user named for results. Raises InputError where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise InputError(f"cannot make this folder: {err.strerror}", where=path, fix="choose one you can write to") from None
    return path


def _plain_lines(label: str, unit: str) -> Progress:
    last, rate = time.monotonic(), _Rate(unit)

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        speed = rate.text(now, done, total)
        if done == total or now - last >= PLAIN_LINE_EVERY_S:
            last = now
            print(f"{label}: {done}/{total}" + (f", {speed}" if speed else ""), file=sys.stderr, flush=True)

    return report


class _Rate:
    """How fast it goes, counted from the first report: what was done before this call does not flatter it."""

    def __init__(self, unit: str) -> None:
        self.unit = f" {unit}" if unit else ""
        self.first: tuple[float, int] | None = None

    def text(self, now: float, done: int, total: int = 0) -> str:
        """As "3.4 volumes/s", with a total "3.4 volumes/s, 58 s left"; "" while nobody can tell."""
        self.first = self.first or (now, done)
        started, before = self.first
        if done == before or now == started:
            return ""
        rate = (done - before) / (now - started)
        return f"{rate:.3g}{self.unit}/s" + (f", {(total - done) / rate:.0f} s left" if total > done else "")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
