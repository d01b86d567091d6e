"""Voxels -> NIfTI-1 files, whole or not at all, the same bytes for the same voxels.

Axes: as in memory: (D, H, W) are the file's i, j, k, and C its 4th axis. Both forms of the header say the affine, in mm,
unless the header of another file is given to follow.
"""

import contextlib
import gzip
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from mri_ds.data.geometry import Geometry
from mri_ds.errors import InputError


def write_label(path: str | Path, labels: np.ndarray, affine: np.ndarray, geometry: Geometry | None = None) -> None:
    """Writes labels (D, H, W) int in the smallest integer type that holds them. Same input, same bytes.

    The header says `affine` in both forms, in mm; or what `geometry` says, word for word, where there is one.
    """
    assert labels.ndim == 3 and labels.dtype.kind in "biu", (labels.shape, labels.dtype)
    _write(Path(path), labels, affine, geometry)


def write_map(path: str | Path, values: np.ndarray, affine: np.ndarray, geometry: Geometry | None = None) -> None:
    """Writes values (D, H, W) as float32; header and bytes as of `write_label`."""
    assert values.ndim == 3 and values.dtype.kind == "f", (values.shape, values.dtype)
    _write(Path(path), values, affine, geometry)


def write_channels(
    path: str | Path, channels: Iterable[np.ndarray], num_channels: int, affine: np.ndarray, geometry: Geometry | None = None
) -> None:
    """Writes volumes (D, H, W) float32, one after another, as one 4-D .nii.gz: memory is that of one of them."""
    path, partial = Path(path), Path(path).with_name(f".{Path(path).name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as raw, gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as file:
            for number, channel in enumerate(channels):
                if number == 0:
                    file.write(_header_of(np.empty((0, 0, 0), np.float32), (*channel.shape, num_channels), affine, geometry))
                for plane in np.asarray(channel, dtype=np.float32).T:  # NIfTI's first axis runs fastest
                    file.write(np.ascontiguousarray(plane).data)
        os.replace(partial, path)
    except OSError as err:
        raise InputError(f"cannot be written ({err.strerror})", where=path, fix="give a writable path with free space") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_image(path: str | Path, image: np.ndarray, affine: np.ndarray, geometry: Geometry | None = None) -> None:
    """Writes an image (C, D, H, W) or (D, H, W): integers in the smallest type that holds them, the rest as float32.

    geometry: of a 3-D image, as for `write_label`.
    """
    assert image.ndim in (3, 4), image.shape
    if image.ndim == 4:
        image = image[0] if image.shape[0] == 1 else np.moveaxis(image, 0, 3)
    _write(Path(path), image, affine, geometry)


def _write(path: Path, voxels: np.ndarray, affine: np.ndarray, geometry: Geometry | None = None) -> None:
    """Voxels in the file's axis order. The file appears whole or not at all."""
    voxels = voxels.astype(_compact_dtype(voxels))
    content = (geometry.image(voxels) if geometry else _image(voxels, affine)).to_bytes()
    if path.name.lower().endswith(".gz"):
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


def _header_of(like: np.ndarray, shape: Sequence[int], affine: np.ndarray, geometry: Geometry | None) -> bytes:
    """Header and empty extension, 352 or 544 bytes, of an image of this type and shape."""
    header = (geometry.image(like) if geometry else _image(like, affine)).header
    header.set_data_shape(shape)
    header["vox_offset"] = header.single_vox_offset
    header["magic"] = header.single_magic
    return header.binaryblock + bytes(int(header["vox_offset"]) - header.sizeof_hdr)  # type: ignore[no-any-return]


def _compact_dtype(voxels: np.ndarray) -> type:
    if voxels.dtype.kind in "biu":
        for dtype in (np.uint8, np.int16, np.int32):
            if np.iinfo(dtype).min <= voxels.min() and voxels.max() <= np.iinfo(dtype).max:
                return dtype
    return np.float32
