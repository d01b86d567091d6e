"""A NIfTI header, judged before anything is allocated: shape, number type, scaling, where the voxels begin.

In: the first bytes of a file, version 1 or 2, either byte order.  Out: Header.
Axes: D H W the file's i, j, k; C its 4th axis (or the 5th, where the 4th is 1).
Source: nifti1.h (2003), nifti2.h (2011).
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from nibabel import nifti1, nifti2

from mri_ds.errors import InputError

MAX_VOXELS = 2**29  # 2 GiB as float32: an 800^3 scan, or an hour of functional MRI
MAX_OFFSET = 2**26  # bytes of header and extensions before the first voxel
HEADER_BYTES = 540  # the longer of the two versions
NUMBERS = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
NO_NUMBERS = {0: "of no type", 1: "single bits", 32: "complex64", 128: "RGB", 1536: "float128", 1792: "complex128"}
NO_NUMBERS |= {2048: "complex256", 2304: "RGBA"}
VERSIONS = (  # fields, where the magic stands, the magic of one file and of a pair
    (nifti1.header_dtype, 344, b"n+1\0", b"ni1\0"),
    (nifti2.header_dtype, 4, b"n+2\0\r\n\x1a\n", b"ni2\0\r\n\x1a\n"),  # its end tells a copy made as text
)
ORDERS: tuple[Literal["<", ">"], ...] = ("<", ">")
CIFTI_INTENTS = range(3000, 3100)
DAMAGED = "the header is damaged: copy or export the file again"


@dataclass(frozen=True)
class Header:
    """What reading needs. `record` has the raw fields; stored value v means slope * v + inter, or v where slope is None."""

    record: np.ndarray
    shape: tuple[int, ...]  # D H W, or D H W C
    dtype: np.dtype
    offset: int  # bytes before the first voxel
    slope: float | None
    inter: float
    is_single: bool  # header and voxels in one file

    @property
    def num_bytes(self) -> int:
        """Of the voxels."""
        return math.prod(self.shape) * self.dtype.itemsize


def parse_header(content: bytes, where: Path) -> Header:
    """Raises InputError for what is no NIfTI, RGB, complex, 2-D, over MAX_VOXELS, or contradicts itself."""
    record, is_single, order = _record(content, where)
    if int(record["intent_code"]) in CIFTI_INTENTS:
        raise InputError("is CIFTI (surfaces), not a volume", where=where, fix="convert it to volumetric NIfTI (.nii.gz)")
    dtype = _dtype(record, where).newbyteorder(order)
    slope, inter = _scaling(record, where)
    return Header(record, _shape(record, where), dtype, _offset(record, is_single, where), slope, inter, is_single)


def _record(content: bytes, where: Path) -> tuple[np.ndarray, bool, Literal["<", ">"]]:
    """The fields in native byte order, whether the voxels are in the same file, and the byte order of both."""
    for layout, magic_at, single, pair in VERSIONS:
        for order in ORDERS:
            if content[:4] == np.array(layout.itemsize, f"{order}i4").tobytes():
                if len(content) < layout.itemsize:
                    what = f"ends after {len(content)} bytes, inside its header"
                    raise InputError(what, where=where, fix="copy or export it again")
                record = np.frombuffer(content, layout.newbyteorder(order), count=1)[0].astype(layout)
                magic = content[magic_at : magic_at + len(single)]
                if magic not in (single, pair):
                    raise _no_magic(magic, layout.itemsize, where)
                return record, magic == single, order
    what = f"cannot be read as NIfTI (begins with {bytes(content[:4])!r}, not with a header's length)"
    raise InputError(what, where=where, fix="copy or export it again as NIfTI")


def _no_magic(magic: bytes, size: int, where: Path) -> InputError:
    if size == nifti1.header_dtype.itemsize and not any(magic):
        what = "is ANALYZE 7.5, which does not say left from right"
        return InputError(what, where=where, fix="convert it to NIfTI from its source")
    what = f"cannot be read as NIfTI (its magic is {magic!r})"
    return InputError(what, where=where, fix="copy it again, as binary, or export it again as NIfTI")


def _dtype(record: np.ndarray, where: Path) -> np.dtype:
    code = int(record["datatype"])
    if code not in NUMBERS:
        what = f"voxels are {NO_NUMBERS.get(code, f'of unknown type {code}')}, not plain numbers"
        raise InputError(what, where=where, fix="export a greyscale volume of integers or floats")
    return np.dtype(NUMBERS[code])


def _shape(record: np.ndarray, where: Path) -> tuple[int, ...]:
    num_axes = int(record["dim"][0])
    if not 1 <= num_axes <= 7:
        raise InputError(f"header declares {num_axes} axes", where=where, fix=DAMAGED)
    shape = tuple(int(n) for n in record["dim"][1 : num_axes + 1])
    text = " x ".join(map(str, shape))
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) == 5 and shape[3] == 1:  # the standard keeps axis 4 for time, so a vector per voxel stands on axis 5
        shape = (*shape[:3], shape[4])
    if len(shape) < 3 or (min(shape) == 1 and len(shape) == 3):
        raise InputError(f"image is 2-D (shape {text})", where=where, fix="give a 3-D volume")
    if len(shape) > 4 or min(shape) < 1 or 1 in shape[:3]:
        raise InputError(f"image has shape {text}", where=where, fix="give a 3-D volume, or a 4-D one with the channels last")
    if math.prod(shape) > MAX_VOXELS:
        what = f"header declares {text} voxels, over {MAX_VOXELS}"
        raise InputError(what, where=where, fix="crop or resample it, or export it again")
    return shape


def _offset(record: np.ndarray, is_single: bool, where: Path) -> int:
    offset = float(record["vox_offset"])
    least = record.dtype.itemsize + 4 if is_single else 0  # 4 bytes say whether extensions follow
    if not least <= offset <= MAX_OFFSET:  # NaN fails too
        raise InputError(f"voxels are said to begin at byte {offset:g}", where=where, fix=DAMAGED)
    return int(offset)


def _scaling(record: np.ndarray, where: Path) -> tuple[float | None, float]:
    """A slope of 0 means none (nifti1.h); NaN and infinity, which writers leave for "none", are read as that."""
    slope, inter = float(record["scl_slope"]), float(record["scl_inter"])
    if slope == 0 or not math.isfinite(slope) or (slope, inter) == (1, 0):
        return None, 0.0
    if not math.isfinite(inter):
        raise InputError(f"voxels are scaled by {slope:g}, but shifted by {inter}", where=where, fix=DAMAGED)
    return slope, inter
