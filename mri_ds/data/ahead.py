"""Reading ahead: a function over items in threads, results in the order of the items.

For work that spends its time outside Python's lock, as reading and decompressing do. Against processes: what was read need not be
carried over, which for large volumes costs more than reading them.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


def read_ahead(function: Callable[[In], Out], items: Iterable[In], num_threads: int) -> Iterator[Out]:
    """map(function, items), computed by `num_threads` threads, each at most one result ahead; 0 computes when asked.

    An error of `function` is raised where its result would stand. Closing the iterator waits for what has begun.

    >>> list(read_ahead(str, range(3), 2))
    ['0', '1', '2']
    """
    if num_threads == 0:
        yield from map(function, items)
        return
    waiting: deque[Future[Out]] = deque()
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="read-ahead")
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > num_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
