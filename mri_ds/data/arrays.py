"""A NumPy array on disk (.npy) as a volume: plain numbers with a place in the world beside them, and never a pickle.

Axes: C channel, D H W voxels; (D, H, W) or (C, D, H, W) in the file.
In: KEY.<anything>.npy and, for an image, KEY.json beside it with `affine` (4 x 4, mm) or `spacing_mm` (3).  Out: Volume.
Source: NumPy's "NPY format", versions 1.0 and 2.0.
"""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mri_ds.data.inside_tar import open_file
from mri_ds.data.nifti.header import MAX_VOXELS
from mri_ds.data.nifti.read import as_labels, check_contrast, check_finite
from mri_ds.errors import InputError

if TYPE_CHECKING:
    from mri_ds.sample import Volume

SUFFIX = ".npy"
MAX_HEADER_BYTES = 2**14
MAX_JSON_BYTES = 2**20
MIN_VOLUME_FRACTION = 1e-3


def read_image(path: Path) -> Volume:
    """Voxels (C, D, H, W) float32. Raises InputError for objects, other kinds or shapes, NaN, constants, no place in space."""
    stored = _read(path)
    image = np.ascontiguousarray(stored[None] if stored.ndim == 3 else stored, dtype=np.float32)
    check_finite(image, path)
    check_contrast(image, path)
    return _volume(image, _affine(path))


def read_label(path: Path) -> Volume:
    """Voxels (D, H, W) int16. Raises InputError as `nifti.read_label` does."""
    stored = _read(path)
    if stored.ndim != 3:
        raise InputError(f"label has {len(stored)} channels", where=path, fix="store one label map, one integer per voxel")
    return _volume(np.ascontiguousarray(as_labels(stored, path)), _affine(path))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of at most MAX_JSON_BYTES, in a file or a member of a tar. Raises InputError for anything else."""
    try:
        file, size = open_file(path)
    except OSError as err:
        raise InputError(f"cannot be opened ({err.strerror})", where=path, fix="put it there") from None
    with file:
        if size > MAX_JSON_BYTES:
            raise InputError(f"has {size} bytes", where=path, fix=f"keep it under {MAX_JSON_BYTES}")
        content = file.read(size)
    try:
        raw = json.loads(content)
    except (ValueError, RecursionError):
        raise InputError("is not JSON", where=path, fix="correct the syntax") from None
    if not isinstance(raw, dict):
        raise InputError("is not an object", where=path, fix='write {"key": value, ...}')
    return raw


def _read(path: Path) -> np.ndarray:
    """As stored. No size is believed before the file is seen to hold it."""
    fix = "save a plain numeric array of three axes, or four with the channels first"
    try:
        file, size = open_file(path)
    except OSError as err:
        raise InputError(f"cannot be opened ({err.strerror})", where=path, fix="check the path") from None
    with file:
        head = io.BytesIO(file.read(MAX_HEADER_BYTES))
        try:
            version = np.lib.format.read_magic(head)
            reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, is_fortran, dtype = reader(head)
        except (ValueError, KeyError, TypeError, EOFError, OverflowError, RecursionError, MemoryError, SyntaxError):
            raise InputError("cannot be read as .npy", where=path, fix=fix) from None
        if dtype.hasobject:
            raise InputError("holds Python objects, and pickles are never read", where=path, fix=fix)
        if dtype.kind not in "iufb" or dtype.itemsize > 8:
            raise InputError(f"holds {dtype}, not plain numbers", where=path, fix=fix)
        if len(shape) not in (3, 4) or min(shape, default=0) < 1 or 1 in shape[-3:]:
            raise InputError(f"has shape {tuple(shape)}", where=path, fix=fix)
        if math.prod(shape) > MAX_VOXELS:
            raise InputError(f"header declares {math.prod(shape)} voxels, over {MAX_VOXELS}", where=path, fix="crop it")
        num_bytes = math.prod(shape) * dtype.itemsize
        if num_bytes > size - head.tell():
            what = f"header declares {num_bytes} bytes of voxels, and there are {size - head.tell()}"
            raise InputError(what, where=path, fix="write it again")
        content = head.read(num_bytes)
        content += file.read(num_bytes - len(content))
    return np.frombuffer(content, dtype, count=math.prod(shape)).reshape(shape, order="F" if is_fortran else "C")


def _affine(path: Path) -> np.ndarray:
    beside = path.with_name(path.name.partition(".")[0] + ".json")
    fix = f"write affine (4 x 4, mm) or spacing_mm (3 numbers) into {beside.name}"
    raw = read_json(beside)
    try:
        affine = np.array(raw["affine"], dtype=np.float64) if "affine" in raw else np.diag([*map(float, raw["spacing_mm"]), 1.0])
        sides = np.linalg.norm(affine[:3, :3], axis=0)
        is_sound = affine.shape == (4, 4) and np.isfinite(affine).all() and affine[3].tolist() == [0, 0, 0, 1] and sides.min() > 0
        if is_sound and abs(np.linalg.det(affine[:3, :3] / sides)) > MIN_VOLUME_FRACTION:
            return affine
    except (KeyError, TypeError, ValueError, IndexError):
        pass
    raise InputError("has no place in the world: a .npy says nothing of voxel sizes", where=path, fix=fix)


def _volume(voxels: np.ndarray, affine: np.ndarray) -> Volume:
    from mri_ds.sample import Volume  # pays for torch, which the processes that only write never need

    return Volume(voxels, affine)
