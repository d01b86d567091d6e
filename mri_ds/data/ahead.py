"""Reading ahead: a function over items in threads, results in the order of the items.

For work that spends its time outside Python's lock, as reading and decompressing do. Against processes: what was read need not be
carried over, which for large volumes costs more than reading them.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")
Work = tuple[Callable[[], Out], Sequence[Callable[[], None]]]  # what gives the result, once the pieces are done in any order


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


def read_together(
    begin: Callable[[In], Work[Out]], items: Iterable[In], num_threads: int, *, num_ahead: int = 1
) -> Iterator[Out]:
    """As `read_ahead`, but all threads work on one item, and go on to the next when nothing is left to begin of it.

    At most `num_ahead` items and the one that is asked for are begun and not yet given out.

    >>> def begin(n):
    ...     squares = []
    ...     return lambda: sum(squares), [lambda i=i: squares.append(i * i) for i in range(n)]
    >>> list(read_together(begin, range(4), 2))
    [0, 0, 1, 5]
    """
    if num_threads == 0:
        for item in items:
            finish, pieces = begin(item)
            for piece in pieces:
                piece()
            yield finish()
        return
    waiting: deque[Future[tuple[Callable[[], Out], list[Future[None]]]]] = deque()
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="read-ahead")

    def start(item: In) -> tuple[Callable[[], Out], list[Future[None]]]:
        finish, pieces = begin(item)
        return finish, [pool.submit(piece) for piece in pieces]

    def oldest() -> Out:
        finish, pieces = waiting.popleft().result()
        for piece in pieces:
            piece.result()
        return finish()

    try:
        for item in items:
            wait(list(waiting)[-1:])  # its pieces go before those of this item
            waiting.append(pool.submit(start, item))
            if len(waiting) > num_ahead:
                yield oldest()
        while waiting:
            yield oldest()
    finally:
        pool.shutdown(cancel_futures=True)
