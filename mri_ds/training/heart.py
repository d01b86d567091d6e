"""A rank's heart: a thread that tells whoever watches that the rank lives, and ends it when it cannot go on by itself.

In: `progress(step)` from the training loop.  Out: beats to the supervisor (a pipe) or to the other ranks (peers.py).
The rank ends, with one line that says why and the stacks of all its threads in RUN/faults/rankN.txt, when
- nothing has moved for `training.timeout_s`: a collective that a peer never joins does not return by itself;
- a peer is silent (peers.py);
- its launcher is gone: then it is told SIGTERM first, and leaves with a checkpoint where it can.
The main thread may hang in C++ at that moment, so the end is os._exit. This module imports nothing that takes seconds.
"""

import faulthandler
import json
import os
import select
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, Protocol

from mri_ds.errors import RunError

BEAT_S = 1.0
FROZEN_S = 5.0  # a beat this late: the whole process was held (a suspended job, a frozen container), which is nobody's fault
MAX_LINE = 1500
MAX_MESSAGE = 200  # of an exception; all of it is in RUN/faults
FULL_BYTES = 16 * 2**20  # with less a disk is full: what failed there did so for that reason
LEAVE_S = 30.0  # for the last step and its checkpoint once the launcher is gone
PIPE, SUPERVISOR = "MRI_DS_HEART", "MRI_DS_SUPERVISOR"  # variables that the supervisor sets: a file descriptor, its process id


class Peers(Protocol):
    def silent(self) -> list[int]: ...
    def culprits(self) -> str: ...
    def tell(self, fault: str) -> None: ...
    def forgive(self, seconds: float) -> None: ...
    def leave(self) -> None: ...


class _Heart:
    """State of this process's heart; None of it exists before `beating`."""

    def __init__(self, run_dir: Path, timeout_s: float) -> None:
        self.run_dir, self.timeout_s = run_dir, timeout_s
        self.pipe = int(os.environ[PIPE]) if is_supervised() else None
        if self.pipe is not None:
            os.set_blocking(self.pipe, False)
        self.step: int | None = None
        self.moved_s = time.monotonic()
        self.leave_by: float | None = None
        self.launcher = _launcher()
        self.peers: Peers | None = None
        self.is_ending = threading.Lock()
        self.done = threading.Event()

    @property
    def rank(self) -> int:
        """Known a while after the start where MPI says it."""
        return int(os.environ.get("RANK", "0"))


_heart: _Heart | None = None


def is_supervised() -> bool:
    """Whether `mri-ds train` started this process as one of its ranks, and reads its beats."""
    return PIPE in os.environ


def is_beating() -> bool:
    """Whether this process has a heart now."""
    return _heart is not None


@contextmanager
def beating(run_dir: Path, timeout_s: float) -> Iterator[None]:
    """Beats while it lasts. For ranks of a launcher; a single process needs nobody to watch it."""
    global _heart
    _heart = _Heart(run_dir, timeout_s)
    _follow_launcher(_heart)
    thread = threading.Thread(target=_beat, args=(_heart,), daemon=True, name="heart")
    thread.start()
    try:
        yield
    finally:
        _heart.done.set()
        thread.join()
        if _heart.peers is not None:
            _heart.peers.leave()
        if _heart.pipe is not None:
            _write(_heart.pipe, {"is_done": True})  # what Python tidies up from here on may take longer than a silence
        _heart = None


def progress(step: int) -> None:
    """The run has done `step`, or something else that takes long: the deadline starts anew. For any rank, at any time."""
    if _heart is not None:
        _heart.step, _heart.moved_s = step, time.monotonic()


def know_peers(peers: Peers) -> None:
    """From now on the heart watches the other ranks. Where a supervisor does, it is not needed."""
    if _heart is not None:
        _heart.peers = peers


def tell(kind: str, line: str) -> None:
    """To the supervisor. `kind`, from cause to consequence: "input", "run", "failed", "stuck", "waits", "lost"."""
    assert _heart is not None and _heart.pipe is not None
    _write(_heart.pipe, {"step": _heart.step, "kind": kind, "line": line[:MAX_LINE]})


def fail(err: BaseException) -> NoReturn:
    """Ends this rank for an exception: one line, and the traceback in RUN/faults. A lost connection names who is lost."""
    assert _heart is not None
    if isinstance(err, RunError):
        _end(_heart, "run", " ".join(str(err).split()))
    stack = "".join(traceback.format_exception(err))
    line = f"{type(err).__name__}: {' '.join(str(err).split())[:MAX_MESSAGE]}"
    with suppress(OSError):  # the run's folder is not there yet, or its file system is what failed
        if shutil.disk_usage(_heart.run_dir).free < FULL_BYTES:
            line = f"the disk of {_heart.run_dir} is full ({line})"
    _end(_heart, "lost" if _is_lost_connection(err) else "failed", line, stack)


def _beat(heart: _Heart) -> None:
    last = time.monotonic()
    while not heart.done.wait(BEAT_S):
        now = time.monotonic()
        with suppress(MemoryError):  # the main thread tells what there is no memory for; until then the heart goes on
            _look(heart, now, since=last)
        last = now


def _look(heart: _Heart, now: float, *, since: float) -> None:
    """One beat, `since` being the time of the last."""
    if now - since > FROZEN_S:
        heart.moved_s += now - since
        if heart.peers is not None:
            heart.peers.forgive(now - since)
    if heart.pipe is not None and not _write(heart.pipe, {"step": heart.step}):
        _launcher_is_gone(heart)
    if heart.launcher != _launcher():
        _launcher_is_gone(heart)
    if heart.leave_by is not None and now > heart.leave_by:
        _end(heart, "failed", f"its launcher is gone, and the step did not end within {LEAVE_S:.0f} s")
    if now - heart.moved_s > heart.timeout_s:
        kind, where = _where_it_is()
        _end(heart, kind, f"nothing moved for {heart.timeout_s:.0f} s (training.timeout_s): {where}")
    if heart.peers is not None and (silent := heart.peers.silent()):
        _end(heart, "lost", f"{_ranks(silent)} not heard of any more")


def _end(heart: _Heart, kind: str, line: str, stack: str = "") -> NoReturn:
    """The last thing that this process does. Whoever comes second, main thread or heart, waits for the end in vain."""
    heart.is_ending.acquire()
    where = _leave_stacks(heart, stack) if kind != "run" else ""
    if kind == "lost" and heart.peers is not None:
        line = f"{heart.peers.culprits() or 'lost a peer'} ({line})"
    step = f"after step {heart.step}" if heart.step else "before the first step"
    text = f"{line}{where}"
    if heart.pipe is not None:
        _write(heart.pipe, {"step": heart.step, "kind": kind, "line": text[:MAX_LINE]})
    else:
        with suppress(OSError):  # whoever read it is gone; the peers still hear it
            os.write(2, f"error: rank {heart.rank} ended {step}: {text}\n".encode())
    if heart.peers is not None:
        heart.peers.tell(f"rank {heart.rank}: {line}" if kind != "lost" else "")
        heart.peers.leave()
    with suppress(Exception):
        from mri_ds.training.processes import end_descendants

        end_descendants(grace_s=0)
    os._exit(1)


def _where_it_is() -> tuple[str, str]:
    """Whether the main thread is "stuck" by itself or "waits" for the others, and the line of ours that it is in."""
    frames = traceback.extract_stack(sys._current_frames()[threading.main_thread().ident or 0])
    kind = "waits" if any("/torch/distributed/" in f.filename or "/deepspeed/" in f.filename for f in frames) else "stuck"
    own = [frame for frame in frames if f"{os.sep}mri_ds{os.sep}" in frame.filename]
    where = f"{Path(own[-1].filename).name} line {own[-1].lineno}, `{own[-1].line}`" if own else "outside of mri_ds"
    return kind, f"waits for other ranks in {where}" if kind == "waits" else where


def _leave_stacks(heart: _Heart, stack: str) -> str:
    path = heart.run_dir / "faults" / f"rank{heart.rank}.txt"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as out:
            out.write(stack)
            out.flush()
            faulthandler.dump_traceback(out, all_threads=True)
    except (OSError, MemoryError):  # a full disk, or want of memory, may be the very fault
        return ""
    return f"; see {path}"


def _follow_launcher(heart: _Heart) -> None:
    """The kernel tells this rank when the process that started it ends; what ended already is seen here."""
    from mri_ds.training.processes import die_with_parent

    die_with_parent(signal.SIGTERM)
    if os.environ.get(SUPERVISOR, str(os.getppid())) != str(os.getppid()):
        _launcher_is_gone(heart)


def _launcher_is_gone(heart: _Heart) -> None:
    if heart.leave_by is None:
        heart.leave_by = time.monotonic() + LEAVE_S
        os.kill(os.getpid(), signal.SIGTERM)


def _launcher() -> list[int]:
    """Processes without which this rank is nobody's: its parent, and what started `deepspeed`'s own launcher.

    `deepspeed` runs the launcher as a child, and when it is ended leaves it, and the ranks below, running. On other nodes the
    launcher stands below sshd, and outlives the connection.
    """
    parent = os.getppid()
    chain = [parent]
    with suppress(OSError):
        while b"deepspeed.launcher.launch" in Path(f"/proc/{parent}/cmdline").read_bytes():
            parent = int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1])
            chain.append(parent)
    return chain


def _is_lost_connection(err: BaseException) -> bool:
    """Whether the exception tells of another rank's end rather than of a fault here."""
    dist = sys.modules.get("torch.distributed")
    is_dist = dist is not None and isinstance(err, getattr(dist, "DistError", ()))
    return is_dist or (
        isinstance(err, RuntimeError) and any(word in str(err).lower() for word in ("gloo", "nccl", "connection closed"))
    )


def _write(pipe: int, message: dict[str, Any]) -> bool:
    while len(text := json.dumps(message)) >= select.PIPE_BUF:  # in one piece only below that; ASCII: a character is a byte
        message = message | {"line": message["line"][:-100]}
    try:
        os.write(pipe, f"{text}\n".encode())
    except BlockingIOError:
        return True
    except OSError:
        return False
    return True


def _ranks(ranks: list[int]) -> str:
    return f"rank {ranks[0]} is" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))} are"
