"""Memory for whole volumes, used again: pages that the kernel clears anew for each volume cost up to a third of reading it.

In: shape and dtype.  Out: an array of undefined content, as `np.empty` gives it. Once nothing refers to it any more, neither
array nor tensor nor view, its memory waits for the next one of about its size.
No lock: memory comes back whenever the last reference goes, in any thread and in the midst of any other call of this file.
What one step does to `_waiting` is therefore one operation of a dict, which Python never interrupts.
"""

import math
from collections.abc import Sequence

import numpy as np

MIN_BYTES = 2**19  # smaller ones malloc keeps by itself, larger ones in some threads only
MAX_SCRATCH_BYTES = 4 * 2**20
MAX_WAITING_BYTES = 640 * 2**20  # per process: what read_many holds of samples of 256^3 with two channels and a label map
MAX_SLACK = 1.25  # how much larger than asked for memory may be

_waiting: dict[int, np.ndarray] = {}  # by id, the longest waiting first


def empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """An array to be filled: whatever stood in its memory before may still be there."""
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes < MIN_BYTES:
        return np.empty(shape, dtype)
    return np.asarray(_Lease(_take(num_bytes), num_bytes)).view(dtype).reshape(shape)


class Scratch:
    """Memory for what lasts but for a step, of one thread at a time: of each name one piece, until it is asked for again.

    >>> scratch = Scratch()
    >>> np.shares_memory(scratch.empty("sum", (9,), np.dtype("int16")), scratch.empty("sum", (2, 2), np.dtype("float32")))
    True
    """

    def __init__(self) -> None:
        self._pieces: dict[str, np.ndarray] = {}

    def empty(self, name: str, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        """An array to be filled, of any size: only pieces of up to MAX_SCRATCH_BYTES are kept."""
        num_bytes = math.prod(shape) * dtype.itemsize
        if num_bytes > MAX_SCRATCH_BYTES:
            return empty(shape, dtype)
        piece = self._pieces.get(name)
        if piece is None or piece.nbytes < num_bytes:
            piece = self._pieces[name] = np.empty(num_bytes, np.uint8)
        return piece[:num_bytes].view(dtype).reshape(shape)


class _Lease:
    """What all arrays on one piece of memory refer to; with the last of them it goes."""

    def __init__(self, memory: np.ndarray, num_bytes: int) -> None:
        self.memory = memory
        self.__array_interface__ = memory[:num_bytes].__array_interface__

    def __del__(self) -> None:
        _give(self.memory)


def _take(num_bytes: int) -> np.ndarray:
    for key, memory in sorted(_waiting.copy().items(), key=lambda item: item[1].nbytes):
        if num_bytes <= memory.nbytes <= MAX_SLACK * num_bytes and _waiting.pop(key, None) is not None:
            return memory
    return np.empty(num_bytes, np.uint8)


def _give(memory: np.ndarray) -> None:
    """The longest waiting make room: what they were made for does not come any more."""
    _waiting[id(memory)] = memory
    waiting = _waiting.copy()
    num_bytes = sum(each.nbytes for each in waiting.values())
    for key, each in waiting.items():
        if num_bytes <= MAX_WAITING_BYTES:
            break
        _waiting.pop(key, None)
        num_bytes -= each.nbytes
