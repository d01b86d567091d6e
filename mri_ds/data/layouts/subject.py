"""A subject as files, a dataset as subjects, and how the files of one become a Sample: the only place that loads an image path.

Axes: C channel, D H W voxels, as they lie in the file.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mri_ds.config import TaskConfig, nearest
from mri_ds.data.grid import AFFINE_TOLERANCE_MM, by
from mri_ds.data.images import read_image, read_label
from mri_ds.data.nifti import corner_distance_mm
from mri_ds.errors import InputError
from mri_ds.sample import Sample, Volume

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SubjectFiles:
    """One subject: an image file per channel (or one 4-D file), label files and values by task. Absent: no label.

    A patient who was scanned several times is several subjects of one `patient`, whom no split may divide.
    """

    subject_id: str
    images: list[Path]
    labels: dict[str, Path] = field(default_factory=dict)
    values: dict[str, str | float] = field(default_factory=dict)
    series: tuple[str, ...] = ()  # of an image that is a DICOM study: those to read, as dicom.read_dicom takes them
    site: str = ""  # the study's code of where the subject was scanned
    strata: dict[str, str] = field(default_factory=dict)  # what groups subjects in tables, see strata.py
    patient: str = ""  # "": this is the only subject of its patient

    @property
    def patient_id(self) -> str:
        return self.patient or self.subject_id


@dataclass(frozen=True)
class Dataset:
    """What a folder holds. `problems` has one line for each file or column that is left out."""

    layout: str
    channels: list[str]
    tasks: dict[str, TaskConfig]
    subjects: list[SubjectFiles]
    problems: list[str] = field(default_factory=list)
    series: dict[str, str] = field(default_factory=dict)  # channel -> series of each subject's study, as the description says


def load_subject(files: SubjectFiles, tasks: Mapping[str, TaskConfig], notes: list[str] | None = None) -> Sample:
    """Reads one subject in the orientation of its files, NIfTI or DICOM.

    What a person should know about them (forms that disagree) is appended to `notes`, or logged where there is no such list.
    Raises InputError for what `read_image` and `read_label` refuse, for files of one subject that differ in shape or place, for
    label values that are no class of their task, and for values that do not fit theirs.
    """
    volumes, acquisitions = zip(*(read_image(path, files.series) for path in files.images), strict=True)
    said = [note for volume in volumes for note in volume.notes]
    image = volumes[0]
    for path, volume in zip(files.images[1:], volumes[1:], strict=True):
        _check_same_grid(volume, image, path, files.images[0])
    targets: dict[str, Any] = {}
    for name, task in tasks.items():
        if task.kind == "segmentation" and name in files.labels:
            label = read_label(files.labels[name])
            said += label.notes
            _check_same_grid(label, image, files.labels[name], files.images[0])
            _check_classes(label.voxels, task, files.labels[name])
            targets[name] = label.voxels
        elif task.kind != "segmentation" and name in files.values:
            targets[name] = _target(files.values[name], name, task, files.subject_id)
    if notes is None:
        for note in said:
            log.warning(note)
    else:
        notes += said
    return {
        "subject_id": files.subject_id,
        "image": np.concatenate([volume.voxels for volume in volumes]),
        "affine": image.affine,
        "spacing_mm": image.spacing_mm,
        "targets": targets,
        "acquisition": [tags for channels in acquisitions for tags in channels],
    }


def _check_same_grid(volume: Volume, image: Volume, path: Path, image_path: Path) -> None:
    shape, wanted = volume.voxels.shape[-3:], image.voxels.shape[-3:]
    if shape != wanted:
        what = f"shape {by(shape)} differs from {by(wanted)} of {image_path.name}"
        raise InputError(what, where=path, fix="resample it onto that image's grid")
    apart = corner_distance_mm(volume.affine, image.affine, shape)
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
