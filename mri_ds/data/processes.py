"""A function over many items on all cores, results in the order of the items.

In: a function and items that can be pickled.  Out: its results, a few at most held in memory.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def in_order(function: Callable[[In], Out], items: Sequence[In], num_workers: int) -> Iterator[Out]:
    """map(function, items), in `num_workers` processes where that is more than one."""
    return map(function, items) if num_workers == 1 else _in_processes(function, items, num_workers)


def _in_processes(function: Callable[[In], Out], items: Sequence[In], num_workers: int) -> Iterator[Out]:
    # spawn: a forked child would inherit the locks of torch's and gloo's threads
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_leave_with_parent) as pool:
        waiting: deque[Future[Out]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 2 * num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise RuntimeError("a process that reads subjects was killed, most likely for want of memory") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _leave_with_parent() -> None:
    """In a worker: Ctrl-C is the parent's to handle, and a parent that is killed leaves no worker behind."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
