"""Runs commands and leaves nothing running, whatever ends it: success, failure, Ctrl-C or SIGTERM.

DeepSpeed's single-node launcher orphans its ranks when it is told to stop, and ranks may sit in other sessions, so process
groups are not enough: see mri_ds/training/processes.py. Descendants get SIGTERM, and SIGKILL after a grace of 5 s.
"""

import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

from mri_ds.training import processes

GRACE_S = 5.0
TICK_S = 1.0
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal asked this program to stop. Not an Exception, so that no stage takes it for its own failure."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


def take_charge() -> None:
    """Call once, first: orphans become this process's children, and the stop signals raise Stopped."""
    processes.adopt_orphans()
    for signum in STOP_SIGNALS:
        signal.signal(signum, _stop)


def run(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stdout_to: Path | None = None,
    tick: Callable[[], None] = lambda: None,
) -> int:
    """Runs one command to its end and then ends what it left behind. Returns its exit code (128 + signal when killed).

    The command has its own session: a Ctrl-C at the terminal reaches only this program, which ends the command in order.
    `tick` is called about once a second meanwhile. `stdout_to` takes the command's stdout instead of the terminal.
    """
    output = stdout_to.open("w") if stdout_to is not None else None
    try:
        process = subprocess.Popen(command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=output, start_new_session=True)
        while (code := _wait(process)) is None:
            tick()
    finally:
        end_all()
        if output is not None:
            output.close()
    return code if code >= 0 else 128 - code


def end_all() -> None:
    """Ends every descendant of this process. Stop signals that come meanwhile are ignored: this is what they ask for."""
    before = {signum: signal.signal(signum, signal.SIG_IGN) for signum in STOP_SIGNALS}
    if left := processes.end_descendants(grace_s=GRACE_S):
        print(f"still running: processes {left}", flush=True)
    for signum, handler in before.items():
        signal.signal(signum, handler)


def _wait(process: subprocess.Popen) -> int | None:
    try:
        return process.wait(timeout=TICK_S)
    except subprocess.TimeoutExpired:
        return None


def _stop(signum: int, frame: FrameType | None) -> None:
    raise Stopped(signum)
