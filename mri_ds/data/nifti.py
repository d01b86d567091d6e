"""NIfTI files in and out: the only reader and writer of voxels on disk.

In: `.nii` or `.nii.gz`, NIfTI-1 or -2.  Out: Volume, voxels (C, D, H, W) float32 for an image, (D, H, W) int16 for a label.
Axes: D H W are the file's own i, j, k, never transposed; the 4th axis of a file becomes C.
The affine is the s-form, or the q-form where the s-form's code is 0, in millimetres; where both codes are 0 it is voxel sizes
alone, read as ANALYZE files are: i runs to the left, the centre is the origin.
Nothing but voxels and affine is carried: a header's free text (descrip, db_name, aux_file, intent_name, extensions) can name
a patient.
Source: NIfTI-1 standard (nifti1.h, 2003); RFC 1951 for the most that deflate can expand.
"""

from __future__ import annotations

import contextlib
import gzip
import logging
import math
import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
from nibabel import imageglobals

from mri_ds.errors import InputError

if TYPE_CHECKING:
    from mri_ds.data.geometry import Geometry
    from mri_ds.sample import Volume

MAX_VOXELS = 2**29  # 2 GiB as float32: an 800^3 scan, or an hour of functional MRI
MAX_DEFLATE_RATIO = 1032  # one byte of a gzip stream yields at most this many
LABEL_TOLERANCE = 1e-4  # how far from an integer a stored label may lie (scl_slope and float32 rounding)
MIN_VOLUME_FRACTION = 1e-3  # |det| of the unit-length affine columns: under this the axes lie in one plane
UNIT_MM = {1: 1000.0, 3: 1e-3}  # xyzt_units: metres, micrometres; 0 (unknown) and 2 are millimetres
imageglobals.logger.setLevel(logging.CRITICAL)  # doubts about a header that nibabel mends by itself are no line of ours


def read_image(path: str | Path) -> Volume:
    """Image file -> Volume, voxels (C, D, H, W) float32.

    Raises InputError for a file that is missing, empty, truncated, corrupt, not NIfTI, 2-D, RGB or complex, larger than its bytes
    or MAX_VOXELS allow, with a NaN, infinite or constant channel, or with an affine that is not finite and invertible.
    """
    path = Path(path)
    voxels, affine = _read(path, np.float32)
    if voxels.ndim == 3:
        voxels = voxels[..., None]
    for channel in range(voxels.shape[3]):
        if voxels[..., channel].min() == voxels[..., channel].max():
            which = f"channel {channel} is" if voxels.shape[3] > 1 else "image is"
            value = voxels[0, 0, 0, channel]
            raise InputError(
                f"{which} constant (every voxel {value:g})", where=path, fix="export the image again, or leave it out"
            )
    return _volume(np.ascontiguousarray(np.moveaxis(voxels, 3, 0)), affine)


def read_label(path: str | Path) -> Volume:
    """Label file -> Volume, voxels (D, H, W) int16, each value an integer from 0 to 32767.

    Raises InputError for all that `read_image` refuses (an empty mask is allowed), for several channels, and for values that are
    not whole numbers of that range.
    """
    path = Path(path)
    voxels, affine = _read(path, None)
    if voxels.ndim != 3:
        raise InputError(f"label has {voxels.shape[3]} channels", where=path, fix="store one label map, one integer per voxel")
    whole = np.rint(voxels)
    distance = np.abs(voxels - whole) if voxels.dtype.kind == "f" else np.zeros(1)
    if distance.max() > LABEL_TOLERANCE:
        value = voxels.flat[distance.argmax()]
        raise InputError(f"label value {value:g} is not an integer", where=path, fix="resample labels with nearest neighbour")
    low, high = whole.min(), whole.max()
    if low < 0 or high > np.iinfo(np.int16).max:
        value = low if low < 0 else high
        raise InputError(f"label value {value:g} is outside 0..32767", where=path, fix="renumber the classes from 0")
    return _volume(np.ascontiguousarray(whole, dtype=np.int16), affine)


def write_label(path: str | Path, labels: np.ndarray, affine: np.ndarray, geometry: Geometry | None = None) -> None:
    """Writes labels (D, H, W) int in the smallest integer type that holds them. Same input, same bytes.

    The header says `affine` in both forms, in mm; or what `geometry` says, word for word, where there is one.
    """
    assert labels.ndim == 3 and labels.dtype.kind in "biu", (labels.shape, labels.dtype)
    _write(Path(path), labels, affine, geometry)


def write_image(path: str | Path, image: np.ndarray, affine: np.ndarray) -> None:
    """Writes an image (C, D, H, W) or (D, H, W): integers in the smallest type that holds them, the rest as float32."""
    assert image.ndim in (3, 4), image.shape
    if image.ndim == 4:
        image = image[0] if image.shape[0] == 1 else np.moveaxis(image, 0, 3)
    _write(Path(path), image, affine)


def stem(path: Path) -> str | None:
    """File name without `.nii` or `.nii.gz`; None for a hidden file or another kind of file."""
    for suffix in (".nii.gz", ".nii"):
        if path.name.lower().endswith(suffix) and not path.name.startswith("."):
            return path.name[: -len(suffix)]
    return None


def _read(path: Path, dtype: type | None) -> tuple[np.ndarray, np.ndarray]:
    """Finite voxels (D, H, W) or (D, H, W, C) as `dtype` (None: as stored, scaled) and the affine (4, 4) in mm."""
    image = _open(path)
    shape = _checked_shape(path, image.header)
    _check_bytes(path, image)
    affine = _checked_affine(path, image)
    voxels = _voxels(path, image, dtype).reshape(shape)
    bad = voxels.size - np.count_nonzero(np.isfinite(voxels))
    if bad:
        raise InputError(
            f"{bad} of {voxels.size} voxels are NaN or infinite", where=path, fix="export the file again, or leave it out"
        )
    return voxels, affine


def _open(path: Path) -> nib.Nifti1Image:
    try:
        size = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        raise InputError("no such file", where=path, fix="check the path") from None
    except OSError as err:
        raise InputError(f"cannot be opened ({err.strerror})", where=path, fix="check the path and its permissions") from None
    if not path.is_file() or stem(path) is None:
        raise InputError("is not a NIfTI file", where=path, fix="give a .nii or .nii.gz file")
    if size == 0:
        raise InputError("file is empty", where=path, fix="copy or export it again")
    try:
        image = nib.load(path, mmap=False)
    except Exception as err:  # on broken bytes nibabel's parser raises a dozen kinds
        raise InputError(f"cannot be read as NIfTI ({err})", where=path, fix="copy or export it again as NIfTI") from None
    if not isinstance(image, nib.Nifti1Image):  # NIfTI-2 is a subclass
        raise InputError(f"is {type(image).__name__}, not single-file NIfTI", where=path, fix="convert it to .nii.gz")
    return image


def _checked_shape(path: Path, header: nib.Nifti1Header) -> tuple[int, ...]:
    """The header's shape without trailing single axes, once it is known to be a volume of numbers."""
    dtype, shape = header.get_data_dtype(), tuple(int(n) for n in header.get_data_shape())
    text = " x ".join(map(str, shape))
    if dtype.kind not in "iuf":
        kind = "RGB" if dtype.names else dtype.name
        raise InputError(f"voxels are {kind}, not plain numbers", where=path, fix="export a greyscale volume")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) < 3 or (min(shape) == 1 and len(shape) == 3):
        raise InputError(f"image is 2-D (shape {text})", where=path, fix="give a 3-D volume")
    if len(shape) > 4 or min(shape) < 1 or 1 in shape[:3]:
        raise InputError(f"image has shape {text}", where=path, fix="give a 3-D volume, or a 4-D one with the channels last")
    if math.prod(shape) > MAX_VOXELS:
        raise InputError(
            f"header declares {text} voxels, over {MAX_VOXELS}", where=path, fix="crop or resample it, or export it again"
        )
    return shape


def _check_bytes(path: Path, image: nib.Nifti1Image) -> None:
    size, declared = path.stat().st_size, _num_bytes(image)
    if declared > (size * MAX_DEFLATE_RATIO if _is_gzip(path) else size):
        shape = " x ".join(map(str, image.shape))
        what = f"header declares {shape} voxels ({declared} bytes), more than a file of {size} bytes can hold"
        raise InputError(what, where=path, fix="the file is truncated or its header damaged: copy or export it again")


def _checked_affine(path: Path, image: nib.Nifti1Image) -> np.ndarray:
    affine = np.asarray(image.affine, dtype=np.float64)
    fix = "write a valid s-form, or set sform_code to 0 where the q-form is right"
    if not np.isfinite(affine).all():
        raise InputError("affine holds NaN or infinity", where=path, fix=fix)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if lengths.min() == 0 or abs(np.linalg.det(affine[:3, :3] / lengths)) < MIN_VOLUME_FRACTION:
        raise InputError(f"affine is singular (rows {affine[:3, :3].round(4).tolist()})", where=path, fix=fix)
    to_mm = UNIT_MM.get(int(image.header["xyzt_units"]) & 7, 1.0)
    return np.diag([to_mm, to_mm, to_mm, 1.0]) @ affine


def _voxels(path: Path, image: nib.Nifti1Image, dtype: type | None) -> np.ndarray:
    try:
        if _is_gzip(path):
            with gzip.open(path) as stream:
                content = stream.read(_num_bytes(image))
                stream.read(1)  # only past the last voxel is the stream's checksum compared
            image = type(image).from_bytes(content)
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is reported as that
            return np.asarray(image.dataobj, dtype=dtype)
    except (OSError, EOFError, ValueError, zlib.error) as err:
        raise InputError(
            f"voxels cannot be read ({err})", where=path, fix="the file is truncated: copy or export it again"
        ) from None


def _num_bytes(image: nib.Nifti1Image) -> int:
    """Bytes of the uncompressed file up to its last voxel. (nibabel sets the offset in a loaded header to 0.)"""
    offset = int(image.dataobj.offset)  # type: ignore[attr-defined]
    return offset + math.prod(map(int, image.shape)) * image.get_data_dtype().itemsize


def _is_gzip(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _write(path: Path, voxels: np.ndarray, affine: np.ndarray, geometry: Geometry | None = None) -> None:
    """Voxels in the file's axis order. The file appears whole or not at all."""
    voxels = voxels.astype(_compact_dtype(voxels))
    content = (geometry.image(voxels) if geometry else _image(voxels, affine)).to_bytes()
    if _is_gzip(path):
        content = gzip.compress(content, compresslevel=1, mtime=0)  # no time stamp: same voxels, same bytes
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as err:
        raise InputError(f"cannot be written ({err.strerror})", where=path, fix="give a writable path with free space") from None
    finally:  # on Ctrl-C too
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _image(voxels: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine, code="scanner")
    try:
        image.set_qform(affine, code="scanner", strip_shears=False)
    except nib.spatialimages.HeaderDataError:  # a q-form cannot say shear: the s-form alone speaks
        image.set_qform(None, code=0)
    image.header.set_xyzt_units("mm")
    return image


def _compact_dtype(voxels: np.ndarray) -> type:
    if voxels.dtype.kind in "biu":
        for dtype in (np.uint8, np.int16, np.int32):
            if np.iinfo(dtype).min <= voxels.min() and voxels.max() <= np.iinfo(dtype).max:
                return dtype
    return np.float32


def _volume(voxels: np.ndarray, affine: np.ndarray) -> Volume:
    from mri_ds.sample import Volume  # pays for torch (2 s), which the processes that only write never need

    return Volume(voxels, affine)
