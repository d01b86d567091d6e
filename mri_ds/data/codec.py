"""One block of voxels as bytes: one Zstandard frame, its bytes shuffled first where that makes it smaller.

In: float32, int32, int16, uint16 or uint8 blocks.  Out: bytes, the same ones for the same block.
Shuffling puts the low bytes of all voxels first, then the high ones, which hardly change: a fifth smaller than without for int16
MRI, and still read at about 1 GB/s a core. Low bytes that are mostly noise stand as they are: they would hardly shrink, and are
what reading spends its time on. Floats are tried both ways: those that a scanner's whole numbers were scaled to repeat
themselves byte for byte, and are half as large when left alone. Differences between neighbours save another tenth and halve the
speed of reading: not worth it.
Reading trusts nothing: a frame's stated size is held against the block's before any memory is allocated, nothing is unpickled.
Source: RFC 8878 (Zstandard); the shuffle filter of HDF5 and Blosc.
"""

import math
import zlib
from collections.abc import Sequence

import numpy as np
import zstandard

from mri_ds.data.buffers import Scratch

LEVEL = 3
LEAST_SAVED = 0.2  # of a plane's bytes, or it is left as it is: some 5 % more bytes in all, decoded in two thirds of the time
MAX_BLOCK_BYTES = 128 * 2**10
FRAME_OF_ONE_SEGMENT = b"\x28\xb5\x2f\xfd\xa0"  # its size follows, in 4 bytes; no checksum: RFC 8878, section 3.1.1.1
DTYPES = ("float32", "int16", "uint16", "uint8", "int32")  # their place is their code in a file: append only
HAS_CHECKSUM, CHECKSUM_BYTES, RUN_OF_ONE_BYTE = 4, 4, 1  # in a frame: bit of its descriptor, length, type of a block


def encode_block(block: np.ndarray, compressor: zstandard.ZstdCompressor) -> tuple[bytes, bool]:
    """Block of one of DTYPES -> one frame, and whether its bytes are shuffled."""
    block = np.ascontiguousarray(block)
    planes = np.ascontiguousarray(block.reshape(-1).view(np.uint8).reshape(-1, block.itemsize).T)
    shuffled = _frame(planes, compressor)
    plain = compressor.compress(block.reshape(-1).view(np.uint8).data) if block.dtype == np.float32 else shuffled
    return (plain, False) if len(plain) < len(shuffled) else (shuffled, True)


def _frame(planes: np.ndarray, compressor: zstandard.ZstdCompressor) -> bytes:
    """Planes (itemsize, n), the low bytes first, as one frame. Leading ones that hardly shrink stay as they are: see LEAST_SAVED.

    What follows them is a frame of its own but for its header: a block refers to nothing before its frame, and blocks of plain
    bytes leave a decoder's state alone (RFC 8878, sections 3.1.1.2 and 3.1.1.5).
    """
    num_plain, n = 0, planes.shape[1]
    while True:
        rest = planes[num_plain:]
        stream = compressor.compressobj(size=rest.size)
        first = stream.compress(rest[0].data) + stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        if len(rest) == 1 or len(first) <= (1 - LEAST_SAVED) * n:
            frame = first + stream.compress(rest[1:].reshape(-1).data) + stream.flush()
            break
        num_plain += 1
    if num_plain == 0:
        return frame
    plain = planes[:num_plain].tobytes()
    pieces = [plain[i : i + MAX_BLOCK_BYTES] for i in range(0, len(plain), MAX_BLOCK_BYTES)]
    header = FRAME_OF_ONE_SEGMENT + planes.size.to_bytes(4, "little")
    blocks = [(len(piece) << 3).to_bytes(3, "little") + piece for piece in pieces]  # type 0, not the last
    return b"".join([header, *blocks, frame[zstandard.frame_header_size(frame) :]])


def decode_blocks(
    frames: bytes | memoryview,
    sizes: Sequence[int],
    shape: tuple[int, ...],
    dtype: np.dtype,
    is_shuffled: Sequence[bool],
    decompressor: zstandard.ZstdDecompressor,
    *,
    part: tuple[slice, ...] = (),
    scratch: Scratch | None = None,
) -> np.ndarray:
    """The inverse, of several blocks at once: (N, *shape) from N frames side by side, `sizes` bytes each; or that part of all.

    In memory of `scratch` it stands until that is used again. Raises ValueError for what is not whole frames of that size.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    scratch = scratch or Scratch()
    with memoryview(frames) as view:
        offset = 0
        for size in sizes:
            _check_frame(view[offset : offset + size], num_bytes)
            offset += size
        data = scratch.empty("bytes", (len(sizes), num_bytes), np.dtype(np.uint8))
        try:
            count = decompressor.stream_reader(view[:offset], read_across_frames=True).readinto(data.reshape(-1).data)
        except zstandard.ZstdError as err:
            raise ValueError(str(err)) from None
    if count != data.size:
        raise ValueError(f"frames hold {count} bytes where {data.size} belong")
    if dtype.itemsize == 1 or not any(is_shuffled):
        return data.view(dtype).reshape(-1, *shape)[(slice(None), *part)]
    if all(is_shuffled):
        return _unshuffled(data, shape, dtype, part, scratch)
    each = [
        _unshuffled(row, shape, dtype, part, Scratch()) if flag else row.view(dtype).reshape(1, *shape)[(slice(None), *part)]
        for row, flag in zip(data[:, None], is_shuffled)
    ]
    return np.concatenate(each)


def _check_frame(frame: memoryview, num_bytes: int) -> None:
    """Raises ValueError unless `frame` is one frame, nothing less or more, that states `num_bytes`: RFC 8878, section 3.1.1."""
    try:
        stated, end = zstandard.frame_content_size(frame), zstandard.frame_header_size(frame)
    except zstandard.ZstdError as err:
        raise ValueError(str(err)) from None
    if stated != num_bytes:
        raise ValueError(f"frame of {stated} bytes where {num_bytes} belong")
    is_last = 0
    while not is_last and end < len(frame):
        head = int.from_bytes(frame[end : end + 3], "little")
        is_last, kind, size = head & 1, head >> 1 & 3, head >> 3
        end += 3 + (1 if kind == RUN_OF_ONE_BYTE else size)
    end += CHECKSUM_BYTES if frame[4] & HAS_CHECKSUM else 0
    if not is_last or end != len(frame):
        raise ValueError(f"frame ends at byte {end} of {len(frame)}: it is cut, or there is extra data")


def _unshuffled(
    data: np.ndarray, shape: tuple[int, ...], dtype: np.dtype, part: tuple[slice, ...], scratch: Scratch
) -> np.ndarray:
    planes = data.reshape(-1, dtype.itemsize, *shape)[(slice(None), slice(None), *part)]

    def joined(high: np.ndarray, low: np.ndarray, wide: str) -> np.ndarray:
        """Halves of words -> words, by arithmetic: two to four times as fast as putting bytes side by side."""
        words = scratch.empty(wide, high.shape, np.dtype(wide))
        np.multiply(high, 1 << 4 * words.itemsize, out=words, dtype=words.dtype)
        return np.bitwise_or(words, low, out=words)

    if dtype.itemsize == 2:
        return joined(planes[:, 1], planes[:, 0], "uint16").view(dtype)
    words = scratch.empty("uint32", planes[:, 0].shape, np.dtype(np.uint32))
    np.multiply(joined(planes[:, 3], planes[:, 2], "uint16"), 1 << 16, out=words, dtype=words.dtype)
    return np.bitwise_or(words, joined(planes[:, 1], planes[:, 0], "uint16"), out=words).view(dtype)


def checksum(data: bytes | memoryview) -> int:
    """CRC-32, 32 bits: a flipped bit is always found. At 3 GB/s it costs less than reading."""
    return zlib.crc32(data)


def as_stored(array: np.ndarray) -> np.ndarray:
    """Whole numbers of a small range, as scanners write them and labels are, in 8 or 16 bits: smaller, and nothing is lost.

    >>> as_stored(np.float32([0, 7])).dtype, as_stored(np.float32([0, 7.5])).dtype, as_stored(np.int16([0, 7])).dtype
    (dtype('uint8'), dtype('float32'), dtype('uint8'))
    """
    if array.size == 0:
        return array
    low, high = array.min(), array.max()  # NaN compares as False
    for name in ("uint8", "int16", "uint16"):
        info = np.iinfo(name)
        if low >= info.min and high <= info.max:
            small = array.astype(name)
            return small if np.array_equal(small, array) else array
    return array
