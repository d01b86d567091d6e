"""dataset.json as MSD and nnU-Net write it: numbered names, a task's name, files that it lists.

Source: Antonelli et al. 2022 (Medical Segmentation Decathlon); nnU-Net v2, documentation/dataset_format.md.
"""

import re
from pathlib import Path, PurePosixPath

from mri_ds.errors import InputError

DESCRIPTION = "dataset.json"


def names_by_number(raw: object, key: str, where: Path) -> list[str]:
    """{"0": "background", "1": "Anterior"}, or nnU-Net's {"background": 0, ...}, -> names in order."""
    fix = f'write "{key}": {{"0": ..., "1": ...}}, numbered from 0 without gaps'
    if not isinstance(raw, dict) or not raw:
        raise InputError(f"has no {key!r}", where=where, fix=fix)
    try:
        by_number = all(str(k).isdigit() for k in raw)
        numbered = {int(k): str(v) for k, v in raw.items()} if by_number else {int(v): k for k, v in raw.items()}
    except (TypeError, ValueError, OverflowError):
        numbered = {}
    if sorted(numbered) != list(range(len(raw))):
        raise InputError(f"{key!r} = {raw} is not numbered from 0 without gaps", where=where, fix=fix)
    if len(set(numbered.values())) < len(raw):
        raise InputError(f"{key!r} = {raw} gives one name twice", where=where, fix=fix)
    return [numbered[i] for i in range(len(numbered))]


def classes_of(raw: object, where: Path) -> list[str]:
    """The classes under "labels", background first. Raises InputError for fewer than two."""
    classes = names_by_number(raw, "labels", where)
    if len(classes) < 2:
        raise InputError(f"'labels' names one class, {classes[0]!r}", where=where, fix='write {"0": "background", "1": ...}')
    return classes


def task_name(name: object, src: Path) -> str:
    """A name for file names from the dataset's: "Brain Tumour" -> "brain_tumour", "Dataset004_Hippocampus" -> "hippocampus".

    >>> task_name(None, Path("/data/Task01_BrainTumour"))
    'braintumour'
    """
    text = re.sub(r"^(dataset|task)\d+_", "", str(name or src.resolve().name).lower())
    return re.sub(r"[^a-z0-9]+", "_", text).strip("_") or "segmentation"


def listed_file(src: Path, name: str, what: str, where: Path) -> Path:
    """A listed file, which must exist and whose name must not leave the folder. (A link inside it may: the user laid it.)"""
    listed = PurePosixPath(name)
    if listed.is_absolute() or ".." in listed.parts:
        raise InputError(f"{what} {name!r} lies outside the dataset", where=where, fix="list only files of this folder")
    path = src / listed
    if "\0" in name or not path.exists():
        raise InputError(f"{what} {name!r} is missing", where=where, fix="put the file there, or take the entry out")
    return path
