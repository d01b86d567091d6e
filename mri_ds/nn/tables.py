"""Tables that depend on shapes alone (positions, windows): made once for each shape, and constants of compiled code."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, TypeVar

from torch.compiler import assume_constant_result

Made = TypeVar("Made")


def table(make: Callable[..., Made]) -> Callable[..., Made]:
    """`make`, of positional hashable arguments, that remembers what it made; its `cache_clear` forgets.

    torch.compile looks through functools.lru_cache into the function, and finds there what it cannot compile: shapes that depend
    on numbers. It runs this at compile time instead and keeps the result.
    """
    made = lru_cache(maxsize=64)(make)

    @assume_constant_result
    @wraps(make)
    def look_up(*args: Any) -> Made:
        return made(*args)

    look_up.cache_clear = made.cache_clear  # type: ignore[attr-defined]
    return look_up
