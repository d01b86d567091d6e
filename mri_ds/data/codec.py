"""One array as bytes: a .npy file inside one Zstandard frame.

In: float32, int16 or uint8 arrays.  Out: bytes, the same ones for the same array.
Reading trusts nothing: the frame's stated size is held against a cap, and the .npy header against that size, before any memory
is allocated for voxels; nothing is unpickled. The frame carries a checksum, so that a flipped bit is an error and not a voxel.
Source: RFC 8878 (Zstandard); numpy.lib.format (.npy, version 1.0).
"""

import io
import math

import numpy as np
import zstandard
from numpy.lib import format as npy

from mri_ds.errors import InputError

LEVEL = 3
MAX_ARRAY_BYTES = 4 * 2**30  # 4 GiB: four channels of 640^3 float32
DTYPES = ("float32", "int16", "uint8")
FIX = "shard the data again"


def encode_array(array: np.ndarray) -> bytes:
    """Array of one of DTYPES -> bytes."""
    array = np.ascontiguousarray(array)
    assert array.dtype.name in DTYPES, f"{array.dtype} cannot be stored: use one of {DTYPES}"
    plain = io.BytesIO()
    npy.write_array(plain, array, version=(1, 0), allow_pickle=False)
    return zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compress(plain.getbuffer())


def as_stored(image: np.ndarray) -> np.ndarray:
    """float32 that holds nothing but integers of int16's range, as scanners write them, becomes int16: half the size, lossless.

    >>> as_stored(np.float32([0, 7])).dtype, as_stored(np.float32([0, 7.5])).dtype
    (dtype('int16'), dtype('float32'))
    """
    if image.dtype != np.float32 or image.size == 0 or not (image.min() >= -32768 and image.max() <= 32767):  # so is NaN
        return image
    small = image.astype(np.int16)
    return small if np.array_equal(small, image) else image


def decode_array(data: bytes, *, where: str = "") -> np.ndarray:
    """Bytes -> array, as it was stored. Raises InputError for anything but a whole, plain array under the cap.

    >>> decode_array(encode_array(np.arange(6, dtype=np.int16).reshape(2, 3))).tolist()
    [[0, 1, 2], [3, 4, 5]]
    """
    try:
        size = zstandard.frame_content_size(data)
        if size < 0:
            raise InputError("Zstandard frame does not state its size", where=where, fix="compress it in one piece")
        if size > MAX_ARRAY_BYTES:
            raise InputError(
                f"array of {size} bytes is over the cap of {MAX_ARRAY_BYTES}", where=where, fix="store smaller volumes"
            )
        with zstandard.ZstdDecompressor().stream_reader(data) as stream:
            return _read_npy(stream, size, where)
    except zstandard.ZstdError as err:
        raise InputError(f"is damaged ({err})", where=where, fix=FIX) from None


def _read_npy(stream: zstandard.ZstdDecompressionReader, size: int, where: str) -> np.ndarray:
    try:
        version = npy.read_magic(stream)
        if version != (1, 0):  # later versions state header lengths up to 4 GiB
            raise ValueError(f"npy version {version}")
        shape, is_fortran, dtype = npy.read_array_header_1_0(stream)
    except Exception as err:  # on broken headers numpy's parser raises half a dozen kinds
        raise InputError(f"is not a plain .npy array ({err})", where=where, fix=FIX) from None
    if dtype.name not in DTYPES or not dtype.isnative:
        raise InputError(f"holds {dtype.str}", where=where, fix=f"store one of {', '.join(DTYPES)}, little-endian")
    num_bytes = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or stream.tell() + num_bytes != size:
        raise InputError(f"states shape {shape} of {dtype} but holds {size} bytes", where=where, fix=FIX)
    array = np.empty(num_bytes, dtype=np.uint8)
    if _fill(array, stream) != num_bytes or stream.read(1):
        raise InputError(f"is shorter or longer than its shape {shape} says", where=where, fix=FIX)
    order = shape[::-1] if is_fortran else shape
    voxels = array.view(dtype).reshape(order)
    return voxels.T if is_fortran else voxels


def _fill(array: np.ndarray, stream: zstandard.ZstdDecompressionReader) -> int:
    """Reads until the array is full or the stream ends; returns the number of bytes read."""
    view, done = memoryview(array.data), 0
    while done < len(view) and (count := stream.readinto(view[done:])):
        done += count
    return done
