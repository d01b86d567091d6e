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

import functools
import itertools
import math
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import zstandard

from mri_ds.data import buffers
from mri_ds.data.chunk_plan import Batch, Layout, batches_of, chunk_for, grid_of, places_of, runs_of
from mri_ds.data.codec import DTYPES, LEVEL, checksum, decode_blocks, encode_block
from mri_ds.errors import CorruptError, InputError

MAGIC, VERSION = b"MRIV", 1
HEAD = struct.Struct("<4sHBB4I3IQI")
PLAIN = 2**31  # added to the size of a chunk whose bytes are not shuffled
MAX_ARRAY_BYTES = 4 * 2**30  # 4 GiB: four channels of 640^3 float32
FIX = "shard the data again"

ReadAt = Callable[[int, int], bytes]  # (offset in the member, number of bytes) -> those bytes
Piece = Callable[[ReadAt], None]  # of the work of reading a box


class _Tools:
    """What reading one piece takes beside the voxels. Used by one thread at a time, then by any other: threads come and go."""

    def __init__(self) -> None:
        self.scratch, self.decompressor = buffers.Scratch(), zstandard.ZstdDecompressor()


_IDLE_TOOLS: deque[_Tools] = deque()  # appending and popping are single steps, which Python never interrupts


@contextmanager
def _tools() -> Iterator[_Tools]:
    try:
        tools = _IDLE_TOOLS.pop()
    except IndexError:
        tools = _Tools()
    try:
        yield tools
    finally:
        _IDLE_TOOLS.append(tools)


def encode_array(array: np.ndarray, *, chunk: tuple[int, int, int] | None = None) -> bytes:
    """Array of one of codec.DTYPES -> bytes. Without `chunk`: 32^3 voxels, or all of a small volume."""
    assert array.dtype.name in DTYPES and 1 <= array.ndim <= 4, (array.dtype, array.shape)
    whole = array.reshape((1,) * (4 - array.ndim) + array.shape)
    chunk = chunk or chunk_for(whole.shape[1:])
    compressor = zstandard.ZstdCompressor(level=LEVEL)
    blocks = [encode_block(whole[c][box], compressor) for box, c in places_of(whole.shape, chunk)]
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
    num_chunks = shape4[0] * math.prod(grid_of(shape4[1:], chunk))
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
    box, pieces = box_in_pieces(layout, start, shape, dtype=dtype, where=where)
    for piece in pieces:
        piece(read_at)
    return box


def box_in_pieces(
    layout: Layout, start: Sequence[int], shape: Sequence[int], *, dtype: np.dtype | None = None, where: str = ""
) -> tuple[np.ndarray, list[Piece]]:
    """What `read_box` gives, still empty, and the work that fills it: pieces that may run in any order and side by side.

    Raises ValueError for a box that is not inside the array. Its pieces raise CorruptError where a chunk fails its checksum.
    """
    inside = layout.shape4[1:]
    if any(s < 0 or n < 0 or s + n > whole for s, n, whole in zip(start, shape, inside, strict=True)):
        raise ValueError(f"box of {tuple(shape)} voxels at {tuple(start)} is not inside {inside}")
    box = buffers.empty((layout.shape4[0], *shape), dtype or layout.dtype)
    runs = runs_of(batches_of(layout, start, shape), layout.offsets) if box.size else []
    return box, [functools.partial(_read_run, layout=layout, run=run, box=box, where=where) for run in runs]


def _read_run(read_at: ReadAt, *, layout: Layout, run: list[Batch], box: np.ndarray, where: str) -> None:
    """Fills what one read holds of the box."""
    begin, end = layout.offsets[[run[0].first, run[-1].stop]].tolist()
    data = memoryview(_exactly(read_at, begin, end - begin, where))  # its slices copy nothing
    with _tools() as tools:
        for batch in run:
            offsets = (layout.offsets[batch.first : batch.stop + 1] - begin).tolist()
            frames = data[offsets[0] : offsets[-1]]
            _check(frames, offsets, layout, batch, where)
            blocks = _decode(frames, offsets, layout, batch, tools, where)
            _put(box[(slice(None), *batch.target)], blocks, batch.columns, tools.scratch)


def _decode(frames: memoryview, offsets: list[int], layout: Layout, batch: Batch, tools: _Tools, where: str) -> np.ndarray:
    """The chunks of a batch, cut to the rows that are wanted, in memory of `tools`."""
    sizes = [stop - first for first, stop in itertools.pairwise(offsets)]
    is_shuffled = layout.is_shuffled[batch.first : batch.stop].tolist()
    try:
        return decode_blocks(
            frames,
            sizes,
            batch.extent,
            layout.dtype,
            is_shuffled,
            tools.decompressor,
            part=batch.part,
            scratch=tools.scratch,
        )
    except ValueError as err:  # its checksum is right: whoever wrote it, wrote this
        what = f"one of chunks {batch.first} to {batch.stop - 1} cannot be decoded ({err})"
        raise InputError(what, where=where, fix=FIX) from None


def _check(frames: memoryview, offsets: list[int], layout: Layout, batch: Batch, where: str) -> None:
    """Raises CorruptError for the first chunk of a batch that fails its checksum."""
    checksums = layout.checksums[batch.first : batch.stop].tolist()
    for i, (begin, end) in enumerate(itertools.pairwise(offsets)):
        if checksum(frames[begin - offsets[0] : end - offsets[0]]) != checksums[i]:
            place, channel = divmod(batch.first + i, layout.shape4[0])
            corner = tuple(int(n) * side for n, side in zip(np.unravel_index(place, layout.grid), layout.chunk))
            what = f"chunk {batch.first + i} (channel {channel}, voxels from {corner}) fails its checksum"
            raise CorruptError(what, where=where, fix=FIX)


def _put(out: np.ndarray, blocks: np.ndarray, columns: slice, scratch: buffers.Scratch) -> None:
    """Blocks (K * C, D, H, w) of K chunks side by side -> out (C, D, H, W), those of their K w columns that are wanted.

    Lines of w voxels are put side by side as one item each, and whole ones are cast: twice as fast as casting piece by piece.
    """
    num_channels, (d, h, w) = len(out), blocks.shape[1:]
    if len(blocks) == num_channels:
        out[...] = blocks[..., columns]
        return
    line = np.dtype((np.void, w * blocks.itemsize))
    lines = blocks.reshape(-1, num_channels, d, h, w).view(line)[..., 0].transpose(1, 2, 3, 0)  # C D H K
    if out.dtype == blocks.dtype and out.shape[3] == w * lines.shape[3]:
        out.view(line)[...] = lines
        return
    wide = scratch.empty("lines", lines.shape, line)
    wide[...] = lines
    out[...] = wide.view(blocks.dtype)[..., columns]


def _exactly(read_at: ReadAt, offset: int, size: int, where: str) -> bytes:
    data = read_at(offset, size)
    if len(data) != size:
        raise CorruptError(f"ends after {len(data)} of {size} bytes from byte {offset} on", where=where, fix=FIX)
    return data
