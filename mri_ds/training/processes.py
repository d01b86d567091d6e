"""Processes of this machine: keep them below us, end them all, clear what a killed one leaves behind.

DeepSpeed's launcher orphans its ranks when it is told to stop, ranks have workers, and any of them may sit in another session:
process groups are not enough. A process that calls `adopt_orphans` becomes the parent of every orphan below it (Linux' child
subreaper) and can end its descendants by id.
"""

import ctypes
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil

GRACE_S = 5.0
LONG_BUILD_S = 900.0
GIVE_UP_S = 15.0  # a process that SIGKILL has not ended by then hangs in the kernel
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # <linux/prctl.h>


def adopt_orphans() -> None:
    """From now on orphans below this process become its children."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(signum: int) -> None:
    """The kernel sends `signum` to this process when its parent ends, however it ends."""
    _prctl(PR_SET_PDEATHSIG, signum)


def end_descendants(grace_s: float) -> list[int]:
    """Ends every process below this one: SIGTERM, and SIGKILL after the grace (0: at once). Returns those that outlive it."""
    start = time.monotonic()
    told: set[psutil.Process] = set()
    while (alive := _descendants()) and time.monotonic() - start < max(GIVE_UP_S, 2 * grace_s):
        is_late = time.monotonic() - start >= grace_s
        for process in alive:
            if is_late or process not in told:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL if is_late else signal.SIGTERM)
        told.update(alive)
        time.sleep(0.05)
    return [process.pid for process in alive]


def remove_stale_build_locks(folder: Path, *, is_shared: bool) -> None:
    """A build of DeepSpeed's operators that was killed leaves a lock, at which every later start waits for ever, without a word.

    Whoever builds keeps the lock open (torch.utils.file_baton): one that no process has open is stale, unless its builder has
    just closed it and is about to remove it, which it could then not do. Where other machines share the folder, their processes
    cannot be seen from here: there it must also be older than any build takes.
    """
    seen = {lock: _inode(lock) for lock in folder.glob("*/lock") if _is_left(lock, is_shared)}
    if seen:
        time.sleep(1)
    for lock, inode in seen.items():
        if inode is not None and _inode(lock) == inode and _is_left(lock, is_shared):
            lock.unlink(missing_ok=True)


def _is_left(lock: Path, is_shared: bool) -> bool:
    with suppress(FileNotFoundError):
        return not _is_open(lock) and (not is_shared or time.time() - lock.stat().st_mtime > LONG_BUILD_S)
    return False


def _inode(path: Path) -> int | None:
    return path.stat().st_ino if path.exists() else None


def _is_open(path: Path) -> bool:
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if any(Path(file.path) == path.resolve() for file in process.open_files()):
                return True
    return False


def _descendants() -> list[psutil.Process]:
    """Living processes below this one. Dead children are reaped first: orphans that ended here have no other parent."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return [process for process in psutil.Process().children(recursive=True) if _is_alive(process)]


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _prctl(option: int, value: int) -> None:
    failed = ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
    assert failed == 0, f"prctl: {os.strerror(ctypes.get_errno())}"
