"""A NIfTI file -> voxels as the network takes them, each value the nearest to what the file says.

In: files.  Out: Volume, voxels (C, D, H, W) float32 or labels (D, H, W) int16, affine in mm, notes for people.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mri_ds.data.inside_tar import find_member, open_file
from mri_ds.data.nifti.affine import place
from mri_ds.data.nifti.files import header_and_voxels
from mri_ds.data.nifti.header import HEADER_BYTES, Header, parse_header
from mri_ds.data.nifti.stream import GZIP, ByteStream
from mri_ds.errors import InputError

if TYPE_CHECKING:
    from mri_ds.sample import Volume

LABEL_TOLERANCE = 1e-4  # how far from an integer a stored label may lie (scl_slope and float32 rounding)
SLICES = 16  # scaled at a time: float64 of a few slices, not of a volume
TRUNCATED = "the file is truncated or its header damaged: copy or export it again"


def read_image(path: str | Path) -> Volume:
    """Image file -> Volume, voxels (C, D, H, W) float32: slope * stored + inter in float64, rounded once.

    Integers up to 2^24 are exact; larger ones and float64 become the nearest float32. `notes` says where q-form and s-form
    disagree, or where there is neither.
    Raises InputError for a file that is missing, empty, truncated, corrupt, not NIfTI, 2-D, RGB or complex, larger than its bytes
    or MAX_VOXELS allow, with a NaN, infinite or constant channel, or with an affine that is not finite and invertible.
    """
    path = Path(path)
    stored, header, affine, notes = _read(path)
    channels = stored.reshape(-1, *header.shape[2::-1])  # C W H D: the first axis of a NIfTI file runs fastest
    image = np.empty((len(channels), *header.shape[:3]), dtype=np.float32)
    for channel, source in zip(image, channels):
        for start in range(0, len(source), SLICES):
            block = slice(start, start + SLICES)
            with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold becomes infinite: reported below
                channel[..., block] = _scaled(source[block], header).transpose(2, 1, 0)
    check_finite(image, path)
    check_contrast(image, path)
    return _volume(image, affine, notes)


def read_label(path: str | Path) -> Volume:
    """Label file -> Volume, voxels (D, H, W) int16, each value an integer from 0 to 32767, exactly as stored.

    Raises InputError for all that `read_image` refuses (an empty mask is allowed), for several channels, and for values that are
    not whole numbers of that range.
    """
    path = Path(path)
    stored, header, affine, notes = _read(path)
    if len(header.shape) != 3:
        raise InputError(f"label has {header.shape[3]} channels", where=path, fix="store one label map, one integer per voxel")
    labels = as_labels(_scaled(stored, header), path).reshape(header.shape, order="F")
    return _volume(np.ascontiguousarray(labels), affine, notes)


# ---- bytes ---------------------------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[np.ndarray, Header, np.ndarray, list[str]]:
    """Stored numbers, flat in the file's order, with what the header says. Nothing is allocated before it is judged."""
    _check_file(path)
    header_path, voxel_path = header_and_voxels(path)
    with _told("cannot be read as NIfTI", path), _open(header_path) as stream:
        header = parse_header(bytes(stream.read(HEADER_BYTES)), path)
    _check_kind(header, header_path, voxel_path, path)
    affine, notes = place(header, path)
    with _told("voxels cannot be read", path), _open(voxel_path) as stream:
        return _voxels(stream, header, path), header, affine, notes


@contextmanager
def _told(what: str, where: Path) -> Iterator[None]:
    """What the disk and zlib raise, as one line."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as err:
        reason = "the CRC of its compressed stream differs" if "data check" in str(err) else str(err)
        raise InputError(f"{what} ({reason})", where=where, fix=TRUNCATED) from None


def _open(path: Path) -> ByteStream:
    """Its bytes, unzipped; twice where they are zipped twice, as webdataset's writer does with a .nii.gz that it is given."""
    with ByteStream(*open_file(path)) as stream:
        is_zipped_twice = stream.is_gzip and stream.read(len(GZIP)) == GZIP
    stream = ByteStream(*open_file(path))
    return ByteStream(stream, stream.most) if is_zipped_twice else stream


def _check_file(path: Path) -> None:
    try:
        if (member := find_member(path)) is not None:
            if member.size == 0:
                raise InputError("file is empty", where=path, fix="copy or export it again")
            return
        size = path.stat().st_size
    except InputError:  # a ValueError too
        raise
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            fix = "fetch what it points to (`git annex get`, `datalad get`)"
            raise InputError("is a link to a file that is not here", where=path, fix=fix) from None
        raise InputError("no such file", where=path, fix="check the path") from None
    except (OSError, ValueError) as err:  # ValueError: a NUL byte in the name
        reason = getattr(err, "strerror", None) or err
        raise InputError(f"cannot be opened ({reason})", where=path, fix="check the path and its permissions") from None
    if not path.is_file():
        raise InputError("is not a NIfTI file", where=path, fix="give a .nii or .nii.gz file, or a pair of .hdr and .img")
    if size == 0:
        raise InputError("file is empty", where=path, fix="copy or export it again")


def _check_kind(header: Header, header_path: Path, voxel_path: Path, where: Path) -> None:
    if header.is_single != (header_path == voxel_path):
        says = "one file" if header.is_single else "a pair of files (.hdr and .img)"
        raise InputError(f"header says that header and voxels are {says}", where=where, fix="name the file by what it is")


def _voxels(stream: ByteStream, header: Header, where: Path) -> np.ndarray:
    """All voxels as stored, flat."""
    declared = header.offset + header.num_bytes
    shape = " x ".join(map(str, header.shape))
    if declared > stream.most:
        what = f"header declares {shape} voxels ({declared} bytes), more than its file can hold"
        raise InputError(what, where=where, fix=TRUNCATED)
    stream.skip(header.offset)
    content = stream.read(header.num_bytes)
    if len(content) < header.num_bytes:
        what = f"holds {len(content)} of the {header.num_bytes} bytes of its {shape} voxels"
        raise InputError(what, where=where, fix=TRUNCATED)
    stream.check_sum(at_most=declared)
    return np.frombuffer(content, dtype=header.dtype)


# ---- values --------------------------------------------------------------------------------------------------------


def _scaled(stored: np.ndarray, header: Header) -> np.ndarray:
    """As stored where there is no slope; else float64."""
    if header.slope is None:
        return stored
    with np.errstate(over="ignore", invalid="ignore"):
        return stored.astype(np.float64) * header.slope + header.inter


def as_labels(values: np.ndarray, where: Path) -> np.ndarray:
    """int16. Raises InputError for values that are not whole numbers from 0 to 32767."""
    if values.dtype.kind == "f":
        check_finite(values, where)
        values = _whole(values, where)
    low, high = values.min(), values.max()
    if low < 0 or high > np.iinfo(np.int16).max:
        value = low if low < 0 else high
        raise InputError(f"label value {value:g} is outside 0..32767", where=where, fix="renumber the classes from 0")
    return values.astype(np.int16)


def _whole(values: np.ndarray, where: Path) -> np.ndarray:
    whole = np.rint(values)
    distance = np.abs(values - whole)
    if distance.max() > LABEL_TOLERANCE:
        value = values[distance.argmax()]
        raise InputError(f"label value {value:g} is not an integer", where=where, fix="resample labels with nearest neighbour")
    return whole


def check_finite(values: np.ndarray, where: Path) -> None:
    bad = values.size - np.count_nonzero(np.isfinite(values))
    if bad:
        what = f"{bad} of {values.size} voxels are NaN or infinite"
        raise InputError(what, where=where, fix="export the file again, or leave it out")


def check_contrast(image: np.ndarray, where: Path) -> None:
    for number, channel in enumerate(image):
        if channel.min() == channel.max():
            which = f"channel {number} is" if len(image) > 1 else "image is"
            what = f"{which} constant (every voxel {channel.flat[0]:g})"
            raise InputError(what, where=where, fix="export the image again, or leave it out")


def _volume(voxels: np.ndarray, affine: np.ndarray, notes: list[str]) -> Volume:
    from mri_ds.sample import Volume  # pays for torch (2 s), which the processes that only write never need

    return Volume(voxels, affine, tuple(notes))
