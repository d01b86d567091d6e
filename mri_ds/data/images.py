"""An image on disk, in whatever form: NIfTI, DICOM as a file, a folder or a zip, a NumPy array; NIfTI and arrays in tars as well.

In: a path.  Out: the name that a subject's files go by, the Volume with its acquisition tags, a digest of its bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mri_ds.data import arrays, nifti
from mri_ds.data.inside_tar import find_member, open_file

if TYPE_CHECKING:
    from mri_ds.sample import Volume

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima", ".zip")
Acquisition = dict[str, float | str]


def image_name(path: Path) -> str | None:
    """Name without its suffix: `sub-01_T1w` of sub-01_T1w.nii.gz, sub-01_T1w.dcm, sub-01_T1w.zip or the folder sub-01_T1w.

    None for a hidden file and for other kinds of files.
    """
    if path.name.startswith("."):
        return None
    if path.is_dir():
        return path.name
    suffix = next((suffix for suffix in DICOM_SUFFIXES if path.name.lower().endswith(suffix)), "")
    return path.name[: -len(suffix)] if suffix else nifti.stem(path)


def is_dicom(path: Path) -> bool:
    """Whether a path is read as DICOM: a folder, a file named as DICOM or zip, or one of no known name that begins as DICOM."""
    if path.is_dir() and nifti.stem(path) is None:
        return True
    if path.name.lower().endswith(DICOM_SUFFIXES):
        return True
    return nifti.stem(path) is None and _begins_as_dicom(path)


def read_image(path: Path, series: Sequence[str] = ()) -> tuple[Volume, list[Acquisition]]:
    """Volume, voxels (C, D, H, W) float32, and the acquisition tags of each channel ({} where a file has none, as NIfTI).

    series: of a DICOM study those to read, a channel each, as `dicom.read_dicom` takes them; (): it has just one.
    Raises InputError for what `nifti.read_image` or `dicom.read_dicom` refuses.
    """
    if is_dicom(path):
        from mri_ds.data.dicom import read_dicom

        return read_dicom(path, series=list(series) or None)
    volume = arrays.read_image(path) if path.name.lower().endswith(arrays.SUFFIX) else nifti.read_image(path)
    return volume, [{} for _ in volume.voxels]


def read_label(path: Path) -> Volume:
    """Volume, voxels (D, H, W) int16. Raises InputError as `nifti.read_label` and `arrays.read_label` do."""
    return arrays.read_label(path) if path.name.lower().endswith(arrays.SUFFIX) else nifti.read_label(path)


def source_sha256(path: Path) -> str:
    """Digest of a file's bytes; of a folder, of its files' bytes, whatever their names and order."""
    if not path.is_dir():
        with open_file(path)[0] as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    inside = sorted(source_sha256(file) for file in path.rglob("*") if file.is_file())
    return hashlib.sha256("".join(inside).encode()).hexdigest()


def source_bytes(path: Path) -> int:
    """Of a file, or of all files in a folder; 0 where there is nothing."""
    if (member := find_member(path)) is not None:
        return member.size
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _begins_as_dicom(path: Path) -> bool:
    from mri_ds.data.dicom.files import MARK, PREAMBLE

    try:
        with path.open("rb") as file:
            return file.read(PREAMBLE + len(MARK))[PREAMBLE:] == MARK
    except OSError:
        return False
