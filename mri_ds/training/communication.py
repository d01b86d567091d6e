"""How long a rank waits for other ranks: the time its collectives hold it up.

DeepSpeed sends everything (ZeRO's gathers and reductions, the experts' all-to-all) through one backend object, whose methods
are timed here, and with them the waits for what they started in the background. On a CPU a call is over when it returns; on a
GPU events on the current stream tell how long the stream was held up, so what runs beside arithmetic on that stream costs
nothing here.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

OPERATIONS = [
    "all_reduce",
    "all_reduce_coalesced",
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_coalesced",
    "reduce_scatter_tensor",
    "reduce_scatter",
    "reduce",
    "broadcast",
    "all_to_all_single",
    "all_to_all",
    "barrier",
]
MAX_EVENTS = 4096  # pairs that wait for the next reading; more would fill memory between two log lines


class CommunicationTimer:
    """Times DeepSpeed's backend from its making on; `take` tells and starts anew."""

    def __init__(self) -> None:
        import deepspeed.comm.comm as comm

        self.seconds = 0.0
        self.depth = 0
        self.events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        backend = comm.cdb
        for name in OPERATIONS:
            if backend is not None and hasattr(backend, name):
                setattr(backend, name, _Timed(self, getattr(backend, name)))

    def take(self) -> float:
        """Seconds of this rank since the last call."""
        if self.events:
            torch.cuda.synchronize()
            self.seconds += sum(start.elapsed_time(end) for start, end in self.events) / 1000
            self.events = []
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Counts nothing while it lasts."""
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def run(self, call: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls, and counts how long that held us up; one collective inside another counts once."""
        if self.depth:
            return call(*args, **kwargs)
        self.depth += 1
        start = _now()
        try:
            return call(*args, **kwargs)
        finally:
            self.depth -= 1
            end = _now()
            if isinstance(start, float):
                self.seconds += end - start
            elif len(self.events) < MAX_EVENTS:
                self.events.append((start, end))


class _Timed:
    """A method of the backend; what it returns may be waited for later."""

    def __init__(self, timer: CommunicationTimer, method: Any) -> None:
        self.timer = timer
        self.method: Any = method.method if isinstance(method, _Timed) else method  # timed for an earlier engine of this process

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        out = self.timer.run(self.method, *args, **kwargs)
        return _Handle(self.timer, out) if isinstance(out, torch.distributed.Work) else out


class _Handle:
    """A Work whose wait is timed; everything else is the Work's own."""

    def __init__(self, timer: CommunicationTimer, work: Any) -> None:
        self.timer, self.work = timer, work

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        return self.timer.run(self.work.wait, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.work, name)


def _now() -> Any:
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
