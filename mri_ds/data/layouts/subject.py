"""A subject as files, a dataset as subjects, and how the files of one become a Sample.

Axes: C channel, D H W voxels, as they lie in the file.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mri_ds.config import TaskConfig, nearest
from mri_ds.data.nifti import read_image, read_label
from mri_ds.errors import InputError
from mri_ds.sample import Sample, Volume

AFFINE_TOLERANCE_MM = 1e-2  # how far apart two files may place the same corner of a volume


@dataclass(frozen=True)
class SubjectFiles:
    """One subject: an image file per channel (or one 4-D file), label files and values by task. Absent: no label."""

    subject_id: str
    images: list[Path]
    labels: dict[str, Path] = field(default_factory=dict)
    values: dict[str, str | float] = field(default_factory=dict)
    site: str = ""  # the study's code of where the subject was scanned


@dataclass(frozen=True)
class Dataset:
    """What a folder holds. `problems` has one line for each file or column that is left out."""

    layout: str
    channels: list[str]
    tasks: dict[str, TaskConfig]
    subjects: list[SubjectFiles]
    problems: list[str] = field(default_factory=list)


def load_subject(files: SubjectFiles, tasks: Mapping[str, TaskConfig]) -> Sample:
    """Reads one subject in the orientation of its files.

    Raises InputError for what `read_image` and `read_label` refuse, for files of one subject that differ in shape or place,
    for label values that are no class of their task, and for values that do not fit theirs.
    """
    volumes = [read_image(path) for path in files.images]
    image = volumes[0]
    for path, volume in zip(files.images[1:], volumes[1:], strict=True):
        _check_same_grid(volume, image, path, files.images[0])
    targets: dict[str, Any] = {}
    for name, task in tasks.items():
        if task.kind == "segmentation" and name in files.labels:
            label = read_label(files.labels[name])
            _check_same_grid(label, image, files.labels[name], files.images[0])
            _check_classes(label.voxels, task, files.labels[name])
            targets[name] = label.voxels
        elif task.kind != "segmentation" and name in files.values:
            targets[name] = _target(files.values[name], name, task, files.subject_id)
    return {
        "subject_id": files.subject_id,
        "image": np.concatenate([volume.voxels for volume in volumes]),
        "affine": image.affine,
        "spacing_mm": image.spacing_mm,
        "targets": targets,
    }


def _check_same_grid(volume: Volume, image: Volume, path: Path, image_path: Path) -> None:
    shape, wanted = volume.voxels.shape[-3:], image.voxels.shape[-3:]
    if shape != wanted:
        what = f"shape {_by(shape)} differs from {_by(wanted)} of {image_path.name}"
        raise InputError(what, where=path, fix="resample it onto that image's grid")
    corners = np.array(np.meshgrid(*([0, n - 1] for n in shape), [1], indexing="ij"), dtype=float).reshape(4, -1)
    apart = np.abs((volume.affine - image.affine) @ corners).max()
    if apart > AFFINE_TOLERANCE_MM:
        what = f"affine places its corners up to {apart:.3g} mm from those of {image_path.name}"
        raise InputError(what, where=path, fix="resample it onto that image's grid, or correct its header")


def _check_classes(label: np.ndarray, task: TaskConfig, path: Path) -> None:
    highest = int(label.max(initial=0))
    if highest >= len(task.classes):
        what = f"label value {highest} is none of the {len(task.classes)} classes (0 to {len(task.classes) - 1})"
        raise InputError(what, where=path, fix="name the class in the dataset's description, or correct the label")


def parse_value(raw: str | float, name: str, task: TaskConfig, *, where: str | Path) -> str | float:
    """A cell of a table as a target of its task: the name of a class, or a finite number. Raises InputError otherwise."""
    if task.kind == "classification":
        if str(raw) not in task.classes:
            raise InputError(f"{name} = {raw!r} is no class", where=where, fix=nearest(str(raw), task.classes))
        return str(raw)
    try:
        value = float(raw)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise InputError(f"{name} = {raw!r} is not a finite number", where=where, fix="correct it, or write n/a")
    return value


def _target(raw: str | float, name: str, task: TaskConfig, subject_id: str) -> int | float:
    value = parse_value(raw, name, task, where=subject_id)
    return value if isinstance(value, float) else task.classes.index(value)


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
