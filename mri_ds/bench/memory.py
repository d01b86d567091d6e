"""Peak memory of a process and all its children, pages that they share counted once (PSS, as /proc/PID/smaps_rollup tells)."""

import re
import threading
from pathlib import Path
from types import TracebackType

import psutil

EVERY_S = 0.1


class PeakMemory:
    """`with PeakMemory(pid) as peak: ...`, then peak.num_bytes: the largest sum that was seen, looked at ten times a second."""

    def __init__(self, pid: int) -> None:
        self.pid, self.num_bytes = pid, 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(EVERY_S):
            self.num_bytes = max(self.num_bytes, pss_bytes(self.pid))


def pss_bytes(pid: int) -> int:
    """Proportional set size of process `pid` and its descendants, now; 0 when it has ended."""
    try:
        pids = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return 0
    return sum(_of_one(each) for each in pids)


def _of_one(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:  # it ended meanwhile
        return 0
    match = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return 1024 * int(match[1]) if match else 0
