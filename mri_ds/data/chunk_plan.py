"""Where the chunks of an array lie, which of them a box touches, and which are read and decoded together.

Axes: C channel, D H W voxels.  In: a Layout and a box.  Out: batches of chunks in the order of the file, grouped into reads.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

SIDE = 32
ONE_CHUNK = 64**3  # voxels
READ_BYTES = 8 * 2**20  # at once: much beside what a request costs, little enough that its memory is used again
BATCH_BYTES = 2**20  # decoded at once: few calls, and what they hand on stays in a core's cache

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Layout:
    """What head and table say: the array's form, and where each chunk lies."""

    dtype: np.dtype
    shape: tuple[int, ...]  # as given to encode_array
    chunk: tuple[int, int, int]
    offsets: np.ndarray  # (num_chunks + 1,) int64, from the start of the member
    checksums: np.ndarray  # (num_chunks,) uint32
    is_shuffled: np.ndarray  # (num_chunks,) bool

    @property
    def shape4(self) -> tuple[int, int, int, int]:
        """C D H W: axes that the array has not got are 1."""
        c, d, h, w = (1,) * (4 - len(self.shape)) + self.shape
        return c, d, h, w

    @property
    def grid(self) -> tuple[int, int, int]:
        """Number of chunks along D, H, W."""
        return grid_of(self.shape4[1:], self.chunk)


def chunk_for(extent: Sequence[int]) -> tuple[int, int, int]:
    d, h, w = (max(1, n) for n in extent) if math.prod(extent) <= ONE_CHUNK else (SIDE, SIDE, SIDE)
    return d, h, w


def grid_of(extent: Sequence[int], chunk: Sequence[int]) -> tuple[int, int, int]:
    d, h, w = (-(-n // side) for n, side in zip(extent, chunk))
    return d, h, w


def places_of(shape4: tuple[int, ...], chunk: Sequence[int]) -> Iterator[tuple[Box, int]]:
    """The box and the channel of each chunk, in the order of the file."""
    sides = [[slice(i, min(i + step, n)) for i in range(0, n, step)] for n, step in zip(shape4[1:], chunk)]
    for d, h, w in itertools.product(*sides):
        for c in range(shape4[0]):
            yield (d, h, w), c


class Batch(NamedTuple):
    """Chunks side by side, of one shape, that a box touches, with all channels; and what of them is wanted."""

    first: int  # number of the first of them
    stop: int
    extent: tuple[int, ...]  # of each
    part: tuple[slice, slice]  # D and H that are wanted of each
    columns: slice  # W that is wanted, of all of them side by side
    target: Box  # counted from the box's corner


def batches_of(layout: Layout, start: Sequence[int], shape: Sequence[int]) -> Iterator[Batch]:
    """In the order of the file."""
    channels, (_, rows, columns) = layout.shape4[0], layout.grid
    sides = [_sides(*axis) for axis in zip(start, shape, layout.chunk, layout.shape4[1:])]
    most = max(1, BATCH_BYTES // (channels * math.prod(layout.chunk) * layout.dtype.itemsize))
    groups = list(_groups(sides[2], most))
    for d, h in itertools.product(*sides[:2]):
        for w in groups:
            number = ((d.number * rows + h.number) * columns + w[0].number) * channels
            columns_of_box = slice(w[0].target.start, w[-1].target.stop)
            first = w[0].source.start
            yield Batch(
                first=number,
                stop=number + len(w) * channels,
                extent=(d.length, h.length, w[0].length),
                part=(d.source, h.source),
                columns=slice(first, first + columns_of_box.stop - columns_of_box.start),
                target=(d.target, h.target, columns_of_box),
            )


def _groups(sides: "list[_Side]", most: int) -> "Iterator[list[_Side]]":
    """At most `most` neighbours of the same length together."""
    for _, same in itertools.groupby(sides, key=lambda side: side.length):
        near = list(same)
        yield from (near[i : i + most] for i in range(0, len(near), most))


class _Side(NamedTuple):
    """One axis of a chunk that a box touches."""

    number: int
    length: int
    source: slice  # what is wanted, counted from the chunk's first voxel
    target: slice  # and from the box's


def _sides(start: int, length: int, chunk: int, size: int) -> list[_Side]:
    """Along one axis, of each chunk that is touched."""
    found = []
    for number in range(start // chunk, -(-(start + length) // chunk)):
        corner, end = number * chunk, min((number + 1) * chunk, size)
        lo, hi = max(corner, start), min(end, start + length)
        found.append(_Side(number, end - corner, slice(lo - corner, hi - corner), slice(lo - start, hi - start)))
    return found


def runs_of(batches: Iterable[Batch], offsets: np.ndarray) -> Iterator[list[Batch]]:
    """Those that lie side by side in the file together, up to READ_BYTES: one read for all of them."""
    run: list[Batch] = []
    for batch in batches:
        if run and (run[-1].stop != batch.first or offsets[batch.stop] - offsets[run[0].first] > READ_BYTES):
            yield run
            run = []
        run.append(batch)
    if run:
        yield run
