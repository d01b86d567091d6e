"""Runs commands and leaves nothing running, whatever ends it: success, failure, Ctrl-C or SIGTERM.

DeepSpeed's single-node launcher orphans its ranks when it is told to stop, and ranks may sit in other sessions, so process
groups are not enough. This process makes itself the parent of every orphan below it (Linux' child subreaper) and ends its
descendants by id: SIGTERM, and SIGKILL after a grace of 5 s.
"""

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil

GRACE_S = 5.0
GIVE_UP_S = 15.0  # a process that SIGKILL has not ended by then hangs in the kernel
TICK_S = 1.0
PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal asked this program to stop. Not an Exception, so that no stage takes it for its own failure."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


def take_charge() -> None:
    """Call once, first: orphans become this process's children, and the stop signals raise Stopped."""
    failed = ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    assert failed == 0, f"prctl: {os.strerror(ctypes.get_errno())}"
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
    start = time.monotonic()
    told: set[psutil.Process] = set()
    while (alive := _descendants()) and time.monotonic() - start < GIVE_UP_S:
        is_late = time.monotonic() - start > GRACE_S
        for process in alive:
            if is_late or process not in told:
                _send(process, signal.SIGKILL if is_late else signal.SIGTERM)
        told.update(alive)
        time.sleep(0.05)
    if alive:
        print(f"still running: processes {[process.pid for process in alive]}", flush=True)
    for signum, handler in before.items():
        signal.signal(signum, handler)


def _wait(process: subprocess.Popen) -> int | None:
    try:
        return process.wait(timeout=TICK_S)
    except subprocess.TimeoutExpired:
        return None


def _descendants() -> list[psutil.Process]:
    """Living processes below this one. Dead children are reaped first: orphans that ended here have no other parent."""
    _reap()
    return [process for process in psutil.Process().children(recursive=True) if _is_alive(process)]


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _send(process: psutil.Process, signum: int) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(signum)


def _stop(signum: int, frame: FrameType | None) -> None:
    raise Stopped(signum)
