"""Signals that ask a run to leave: it ends its step, saves a checkpoint and goes, all ranks after the same step.

| signal  | who sends it                                       | exit code                                          |
|---------|----------------------------------------------------|----------------------------------------------------|
| SIGUSR1 | Slurm ahead of the time limit (`--signal=USR1@60`) | 0, and RUN/requeue asks for the job to start again |
| SIGTERM | `kill`, `scancel`, launchers                       | 143                                                |
| SIGINT  | Ctrl-C; a second one does not wait for the step    | 130                                                |
| SIGHUP  | a terminal that closes (`nohup` keeps it out)      | 129                                                |

A handler only notes the signal, so nothing breaks wherever it comes, start-up included. Where ranks were told different things,
SIGUSR1 wins: the SIGTERM that follows it at a time limit must not take the second start back.
This module needs the standard library alone, so that a rank can listen before it imports anything that takes seconds.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

BY_WEIGHT = [signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]  # of several, the last one listed counts
REQUEUE = "requeue"  # file of the run folder
PATIENCE_S = 1.0  # launchers repeat a Ctrl-C that the terminal has sent to their ranks already: that is no second one


class Stopped(BaseException):
    """The run left after `step`, asked by a signal. Not an Exception: nothing may take it for a failure."""

    def __init__(self, signum: int, step: int) -> None:
        self.name, self.step = signal.Signals(signum).name, step
        self.exit_code = 0 if signum == signal.SIGUSR1 else 128 + signum
        where = f"after step {step}: the same command goes on from there" if step else "before the first step"
        super().__init__(f"stopped by {self.name} {where}")


class _Heard:
    """What this process was told. A process has one set of signal handlers, so there is one of these."""

    def __init__(self) -> None:
        self.weight = 0  # 1 + index in BY_WEIGHT; 0: nothing
        self.at_s = 0.0
        self.is_training = False  # before, Ctrl-C finds nothing worth saving


_heard = _Heard()


def listen() -> None:
    """Takes over the four signals. Call it first, in the main thread; calling it again changes nothing."""
    for signum in BY_WEIGHT:
        is_ignored = signal.getsignal(signum) == signal.SIG_IGN
        if not (is_ignored and signum in (signal.SIGHUP, signal.SIGINT)):  # as by nohup, or a shell's `&`: on purpose
            signal.signal(signum, _note)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, BY_WEIGHT)  # a launcher may hold them back until someone listens


@contextmanager
def listening() -> Iterator[None]:
    """`listen` for a while: afterwards the handlers are those from before, and what was heard is forgotten."""
    before = {signum: signal.getsignal(signum) for signum in BY_WEIGHT}
    listen()
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        _heard.__init__()  # type: ignore[misc]


def heard() -> int:
    """What this rank was told so far, as a number for all ranks to agree on: the largest counts. 0: nothing."""
    _heard.is_training = True
    return _heard.weight


def signal_of(weight: int) -> signal.Signals:
    """The signal behind the number that `heard` gave."""
    return BY_WEIGHT[weight - 1]


def ask_for_requeue(run_dir: Path) -> None:
    """Leaves the marker that the batch script looks for; one rank does it, after the checkpoint is complete."""
    (run_dir / REQUEUE).touch()


def forget_requeue(run_dir: Path) -> None:
    """For a run that starts: the marker of its last end is void."""
    (run_dir / REQUEUE).unlink(missing_ok=True)


def _note(signum: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    is_first = _heard.weight == 0
    if signum == signal.SIGINT and (not _heard.is_training or (not is_first and now - _heard.at_s > PATIENCE_S)):
        raise KeyboardInterrupt
    _heard.weight = max(_heard.weight, 1 + BY_WEIGHT.index(signal.Signals(signum)))
    if is_first:
        _heard.at_s = now
        if signum == signal.SIGINT and os.isatty(2):  # os.write: a handler may interrupt a print half-way
            os.write(2, b"\nending the step and saving a checkpoint; Ctrl-C again leaves at once\n")
