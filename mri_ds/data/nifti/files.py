"""Names of NIfTI files: which files are images, and which two belong together."""

from pathlib import Path

from mri_ds.errors import InputError

SINGLE = (".nii.gz", ".nii")
VOXELS = (".img.gz", ".img")
HEADER = (".hdr.gz", ".hdr")


def stem(path: Path) -> str | None:
    """File name without `.nii`, `.nii.gz`, `.img` or `.img.gz`; None for a hidden file or another kind of file.

    A pair counts once, by its voxels: the stem of a `.hdr` is None.

    >>> stem(Path("sub-01_T1w.nii.gz")), stem(Path("sub-01_T1w.img")), stem(Path("notes.txt"))
    ('sub-01_T1w', 'sub-01_T1w', None)
    """
    return None if path.name.startswith(".") else _without(path, SINGLE + VOXELS)


def header_and_voxels(path: Path) -> tuple[Path, Path]:
    """The file that holds the header and the one that holds the voxels; twice the same for `.nii`.

    `path` may be either half of a pair. Raises InputError for another kind of file and where the other half is missing.
    """
    if path.is_dir() or path.name.startswith("."):
        raise _not_nifti(path)
    if _without(path, SINGLE) is not None:
        return path, path
    for own, other in ((VOXELS, HEADER), (HEADER, VOXELS)):
        name = _without(path, own)
        if name is not None:
            partner = _partner(path, name, other)
            return (partner, path) if own is VOXELS else (path, partner)
    raise _not_nifti(path)


def _partner(path: Path, name: str, suffixes: tuple[str, ...]) -> Path:
    for suffix in (*suffixes, *map(str.upper, suffixes)):
        if (partner := path.with_name(name + suffix)).is_file():
            return partner
    raise InputError(f"{name}{suffixes[-1]} is missing beside it", where=path, fix="a pair needs both: put it there")


def _without(path: Path, suffixes: tuple[str, ...]) -> str | None:
    suffix = next((suffix for suffix in suffixes if path.name.lower().endswith(suffix)), None)
    return path.name[: -len(suffix)] if suffix else None


def _not_nifti(path: Path) -> InputError:
    return InputError("is not a NIfTI file", where=path, fix="give a .nii or .nii.gz file, or a pair of .hdr and .img")
