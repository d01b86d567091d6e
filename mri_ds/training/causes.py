"""Why a process ended, in words: a signal's name, the kernel's out-of-memory killer, an exit code.

In: what `wait` tells, and counters that the kernel keeps.  Out: "was killed by SIGKILL (out of memory ...)".
Source: Linux, Documentation/admin-guide/cgroup-v1/memory.rst (oom_kill of memory.oom_control), cgroup-v2.rst (memory.events).
"""

import signal
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


class MemoryWatch:
    """Counts of out-of-memory kills: in the memory cgroup of one process, and on the whole machine."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.groups: dict[Path, int] = {}  # counter file: its value when the process was first seen there
        self.machine = _count(Path("/proc/vmstat"))
        self.look()

    def look(self) -> None:
        """Call it now and then while the process lives: it may be moved to another group."""
        counter = _counter_of(self.pid)
        if counter is not None and counter not in self.groups:
            self.groups[counter] = _count(counter)

    def verdict(self) -> str:
        """For a process that SIGKILL ended: what speaks for want of memory, "" where nothing does."""
        for counter, before in self.groups.items():
            if _count(counter) > before:
                limit = counter.with_name("memory.max" if counter.name == "memory.events" else "memory.limit_in_bytes")
                return f"out of memory: its cgroup allows {_gib(limit)}"
        return (
            "most likely out of memory: the kernel killed a process for that"
            if _count(Path("/proc/vmstat")) > self.machine
            else ""
        )


def how_it_ended(code: int, memory: str = "") -> str:
    """`code` as subprocess has it: minus the signal's number for a kill."""
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"was killed by {name} ({memory})" if memory and -code == signal.SIGKILL else f"was killed by {name}"


def is_stopped(pid: int) -> bool:
    """Whether a signal (SIGSTOP, SIGTSTP) or a debugger holds the process."""
    return _state(pid) in ("T", "t")


def what_it_does(pid: int) -> str:
    """For a process that is silent."""
    waits = {
        "D": "waits for a disk or a network file system",
        "T": "was stopped by a signal (SIGSTOP)",
        "t": "is held by a debugger",
    }
    return waits.get(_state(pid), "does not respond")


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def _counter_of(pid: int) -> Path | None:
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if "memory" in controllers.split(","):
            counter = CGROUP / "memory" / group.lstrip("/") / "memory.oom_control"
        elif controllers == "":
            counter = CGROUP / group.lstrip("/") / "memory.events"
        else:
            continue
        if counter.is_file():
            return counter
    return None


def _count(counter: Path) -> int:
    try:
        return next(int(line.split()[1]) for line in counter.read_text().splitlines() if line.split()[0] == "oom_kill")
    except (OSError, StopIteration):
        return 0


def _gib(limit: Path) -> str:
    try:
        return f"{int(limit.read_text()) / 2**30:.2f} GiB"
    except (OSError, ValueError):
        return "no more"
