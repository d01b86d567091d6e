"""One array as a member of a tar, in chunks: a box of it is read without reading the rest.

Axes: C channel, D H W voxels.  In: an array of one to four axes.  Out: bytes; back from them, whole or any box.
    head   48 bytes, little-endian: magic "MRIV", version, code of the dtype, number of axes, shape C D H W, chunk D H W,
           number of bytes that follow the table, CRC-32 of all of head and table but itself
    table  for each chunk its compressed size (2^31 more where its bytes are not shuffled) and its CRC-32, 4 bytes each: offsets
           are running sums, so chunks cannot overlap
    chunks in the order of their place (D, H, W), the channels of one place side by side; at the upper borders they are cut off
A chunk is 32^3 voxels: a 128^3 box out of a 512^3 volume touches at most 5^3 of 16^3 chunks, 3 % of the volume. Volumes of up to
64^3 voxels are one chunk, which is smaller and read faster.
Nothing is believed before its checksum, and nothing is allocated before its size is held against the bytes that there are.
"""

import itertools
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import zstandard

from mri_ds.data.codec import DTYPES, LEVEL, checksum, decode_block, encode_block
from mri_ds.errors import CorruptError, InputError

MAGIC, VERSION = b"MRIV", 1
HEAD = struct.Struct("<4sHBB4I3IQI")
SIDE = 32
ONE_CHUNK = 64**3  # voxels
PLAIN = 2**31  # added to the size of a chunk whose bytes are not shuffled
MAX_ARRAY_BYTES = 4 * 2**30  # 4 GiB: four channels of 640^3 float32
FIX = "shard the data again"

ReadAt = Callable[[int, int], bytes]  # (offset in the member, number of bytes) -> those bytes
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
        return _grid(self.shape4[1:], self.chunk)


def encode_array(array: np.ndarray, *, chunk: tuple[int, int, int] | None = None) -> bytes:
    """Array of one of codec.DTYPES -> bytes. Without `chunk`: 32^3 voxels, or all of a small volume."""
    assert array.dtype.name in DTYPES and 1 <= array.ndim <= 4, (array.dtype, array.shape)
    whole = array.reshape((1,) * (4 - array.ndim) + array.shape)
    chunk = chunk or _chunk_for(whole.shape[1:])
    compressor = zstandard.ZstdCompressor(level=LEVEL)
    blocks = [encode_block(whole[c][box], compressor) for box, c in _places(whole.shape, chunk)]
    frames = [frame for frame, _ in blocks]
    rows = [(len(frame) | (0 if is_shuffled else PLAIN), checksum(frame)) for frame, is_shuffled in blocks]
    table = np.array(rows, dtype="<u4").tobytes()
    start = (MAGIC, VERSION, DTYPES.index(array.dtype.name), array.ndim, *whole.shape, *chunk, sum(map(len, frames)))
    head = HEAD.pack(*start, checksum(HEAD.pack(*start, 0) + table))
    return b"".join([head, table, *frames])


def decode_array(data: bytes, *, where: str = "") -> np.ndarray:
    """Bytes -> array, as it was given. Raises CorruptError where a checksum fails, InputError for what was never ours.

    >>> decode_array(encode_array(np.arange(6, dtype=np.int16).reshape(2, 3))).tolist()
    [[0, 1, 2], [3, 4, 5]]
    """
    view = memoryview(data)

    def read_at(offset: int, size: int) -> bytes:
        return view[offset : offset + size]  # type: ignore[return-value]  # a view serves, and copies nothing

    layout = read_layout(read_at, len(data), where=where)
    whole = read_box(read_at, layout, (0, 0, 0), layout.shape4[1:], where=where)
    return whole.reshape(layout.shape)


def read_layout(read_at: ReadAt, size: int, *, where: str = "") -> Layout:
    """Head and table of a member of `size` bytes."""
    if size < HEAD.size:
        raise InputError(f"has {size} bytes, a head has {HEAD.size}", where=where, fix=FIX)
    head = _exactly(read_at, 0, HEAD.size, where)
    magic, version, code, ndim, *numbers, num_bytes, crc = HEAD.unpack(head)
    shape4, chunk = tuple(numbers[:4]), tuple(numbers[4:])
    if magic != MAGIC:
        raise InputError("is not an array in chunks", where=where, fix=FIX)
    if version != VERSION:
        raise InputError(f"is version {version} of an array in chunks, {VERSION} is known", where=where, fix="upgrade mri_ds")
    if code >= len(DTYPES) or not 1 <= ndim <= 4 or 0 in chunk or set(shape4[: 4 - ndim]) - {1}:
        raise CorruptError("has a damaged head", where=where, fix=FIX)
    dtype = np.dtype(DTYPES[code])
    if math.prod(shape4) * dtype.itemsize > MAX_ARRAY_BYTES:
        raise InputError(f"states shape {shape4}, over the cap of {MAX_ARRAY_BYTES} bytes", where=where, fix="store less")
    num_chunks = shape4[0] * math.prod(_grid(shape4[1:], chunk))
    if HEAD.size + 8 * num_chunks + num_bytes != size:
        raise CorruptError(f"states {num_chunks} chunks of {num_bytes} bytes, but has {size} bytes", where=where, fix=FIX)
    table = _exactly(read_at, HEAD.size, 8 * num_chunks, where)
    if checksum(bytes(head[:-4]) + bytes(4) + bytes(table)) != crc:
        raise CorruptError("head does not match its checksum", where=where, fix=FIX)
    sizes, checksums = np.frombuffer(table, dtype="<u4").reshape(-1, 2).T
    offsets = HEAD.size + 8 * num_chunks + np.concatenate([[0], np.cumsum(sizes & (PLAIN - 1), dtype=np.int64)])
    if offsets[-1] != size:
        raise CorruptError(f"has chunks up to byte {offsets[-1]} of {size}", where=where, fix=FIX)
    return Layout(dtype, shape4[4 - ndim :], chunk, offsets, checksums, sizes < PLAIN)  # type: ignore[arg-type]


def read_box(
    read_at: ReadAt,
    layout: Layout,
    start: Sequence[int],
    shape: Sequence[int],
    *,
    dtype: np.dtype | None = None,
    where: str = "",
) -> np.ndarray:
    """(C, *shape): the voxels from `start` on, of every channel. Only the chunks that the box touches are read.

    They are given as `dtype`, or as they are stored.

    Raises ValueError for a box that is not inside the array, CorruptError where a chunk fails its checksum.
    """
    inside = layout.shape4[1:]
    if any(s < 0 or n < 0 or s + n > whole for s, n, whole in zip(start, shape, inside, strict=True)):
        raise ValueError(f"box of {tuple(shape)} voxels at {tuple(start)} is not inside {inside}")
    out = np.empty((layout.shape4[0], *shape), dtype=dtype or layout.dtype)
    if out.size == 0:
        return out
    decompressor = zstandard.ZstdDecompressor()
    for run in _runs(_pieces(layout, start, shape)):
        first, stop = run[0].number, run[-1].number + 1
        offsets = layout.offsets[first : stop + 1].tolist()  # plain numbers: this loop is as busy with them as with voxels
        checksums, is_shuffled = layout.checksums[first:stop].tolist(), layout.is_shuffled[first:stop].tolist()
        data = memoryview(_exactly(read_at, offsets[0], offsets[-1] - offsets[0], where))  # its slices copy nothing
        for i, piece in enumerate(run):
            frame = data[offsets[i] - offsets[0] : offsets[i + 1] - offsets[0]]
            if checksum(frame) != checksums[i]:
                what = f"chunk {piece.number} (channel {piece.channel}, voxels from {piece.corner}) fails its checksum"
                raise CorruptError(what, where=where, fix=FIX)
            try:
                block = decode_block(frame, piece.extent, layout.dtype, is_shuffled[i], decompressor, part=piece.source)
            except ValueError as err:  # its checksum is right: whoever wrote it, wrote this
                raise InputError(f"chunk {piece.number} cannot be decoded ({err})", where=where, fix=FIX) from None
            out[piece.channel][piece.target] = block
    return out


def _exactly(read_at: ReadAt, offset: int, size: int, where: str) -> bytes:
    data = read_at(offset, size)
    if len(data) != size:
        raise CorruptError(f"ends after {len(data)} of {size} bytes from byte {offset} on", where=where, fix=FIX)
    return data


# ---- which chunks ----------------------------------------------------------------------------------------------------


def _chunk_for(extent: Sequence[int]) -> tuple[int, int, int]:
    d, h, w = (max(1, n) for n in extent) if math.prod(extent) <= ONE_CHUNK else (SIDE, SIDE, SIDE)
    return d, h, w


def _grid(extent: Sequence[int], chunk: Sequence[int]) -> tuple[int, int, int]:
    d, h, w = (-(-n // side) for n, side in zip(extent, chunk))
    return d, h, w


def _places(shape4: tuple[int, ...], chunk: Sequence[int]) -> Iterator[tuple[Box, int]]:
    """The box and the channel of each chunk, in the order of the file."""
    sides = [[slice(i, min(i + step, n)) for i in range(0, n, step)] for n, step in zip(shape4[1:], chunk)]
    for d, h, w in itertools.product(*sides):
        for c in range(shape4[0]):
            yield (d, h, w), c


class _Piece(NamedTuple):
    """A chunk that a box touches, and what of it is wanted."""

    number: int
    channel: int
    corner: tuple[int, ...]  # first voxel of the chunk
    extent: tuple[int, ...]
    source: Box  # what is wanted, counted from the chunk's corner
    target: Box  # and from the box's


def _pieces(layout: Layout, start: Sequence[int], shape: Sequence[int]) -> Iterator[_Piece]:
    """In the order of the file."""
    channels, (_, rows, columns) = layout.shape4[0], layout.grid
    sides = [_sides(*axis) for axis in zip(start, shape, layout.chunk, layout.shape4[1:])]
    for d, h, w in itertools.product(*sides):
        number = ((d[0] * rows + h[0]) * columns + w[0]) * channels
        _, corner, extent, source, target = zip(d, h, w)
        for c in range(channels):
            yield _Piece(number + c, c, corner, extent, source, target)  # type: ignore[arg-type]


def _sides(start: int, length: int, chunk: int, size: int) -> list[tuple[int, int, int, slice, slice]]:
    """Along one axis, of each chunk that is touched: its number, first voxel, length, and what is wanted of it (see _Piece)."""
    found = []
    for number in range(start // chunk, -(-(start + length) // chunk)):
        corner, end = number * chunk, min((number + 1) * chunk, size)
        lo, hi = max(corner, start), min(end, start + length)
        found.append((number, corner, end - corner, slice(lo - corner, hi - corner), slice(lo - start, hi - start)))
    return found


def _runs(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    """Those that lie side by side in the file together: one read for all of them."""
    for _, run in itertools.groupby(enumerate(pieces), key=lambda at: at[1].number - at[0]):
        yield [piece for _, piece in run]
