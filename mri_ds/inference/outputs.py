"""One subject's predictions as files, on the grid of the image they were made from.

Axes: K classes, D H W voxels.
SUBJECT_TASK.nii.gz has the input's shape and, word for word, its header's geometry (both forms, their codes, voxel sizes, units);
SUBJECT_TASK_probabilities.nii.gz has the classes along its 4th axis; SUBJECT_TASK_entropy.nii.gz, float32, how undecided each
voxel is; SUBJECT_TASK.seg.dcm is the label map as DICOM, where the
input was DICOM; SUBJECT.png is to look at; SUBJECT.json has every task's result. Each file appears complete or not at all, the
JSON last: a subject that has it is done.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mri_ds.data.geometry import read_geometry
from mri_ds.data.images import is_dicom
from mri_ds.data.layouts import SubjectFiles
from mri_ds.data.nifti import write_channels, write_label, write_map
from mri_ds.data.preprocess import to_input_grid
from mri_ds.inference.picture import draw_case
from mri_ds.inference.subject import ClassScores, LabelMap, Prediction
from mri_ds.sample import Sample

Told = dict[str, Any]


def write_outputs(
    out: Path, files: SubjectFiles, affine: np.ndarray, canonical: Sample, predictions: Mapping[str, Prediction], marker: Told
) -> Told:
    """Writes all files and returns {"subject_id", "tasks", "files": {what: path}}.

    affine (4, 4) is the input's own. marker: by which a later call knows what was made of what; {}: it will not ask.
    """
    subject_id = files.subject_id
    out.mkdir(parents=True, exist_ok=True)
    geometry = read_geometry(files.images[0], affine)
    tasks, written = {}, {}
    for task, prediction in predictions.items():
        tasks[task] = describe(prediction, affine)
        if not isinstance(prediction, LabelMap):
            continue
        labels = to_input_grid(prediction.labels, affine)
        written[task] = out / f"{subject_id}_{task}.nii.gz"
        write_label(written[task], labels, affine, geometry)
        if prediction.probabilities is not None:
            written[f"{task}_probabilities"] = out / f"{subject_id}_{task}_probabilities.nii.gz"
            turned = (to_input_grid(channel, affine) for channel in prediction.probabilities)
            write_channels(written[f"{task}_probabilities"], turned, len(prediction.classes), affine, geometry)
        if prediction.entropy is not None:
            written[f"{task}_entropy"] = out / f"{subject_id}_{task}_entropy.nii.gz"
            write_map(written[f"{task}_entropy"], to_input_grid(prediction.entropy, affine), affine, geometry)
        if is_dicom(files.images[0]):
            seg = _write_seg(out / f"{subject_id}_{task}.seg.dcm", files, labels, prediction.classes)
            written |= {f"{task}_seg": seg} if seg else {}
    picture = _draw(out / f"{subject_id}.png", canonical, predictions)
    if picture is not None:
        written["picture"] = picture
    names = {what: path.name for what, path in written.items()}
    content: Told = {"subject_id": subject_id, "tasks": tasks}
    if marker:
        content |= {"files": names, "made": marker}
    written["json"] = write_json(json_path(out, subject_id), content)
    return {"subject_id": subject_id, "tasks": tasks, "files": {what: str(path) for what, path in written.items()}}


def json_path(out: Path, subject_id: str) -> Path:
    return out / f"{subject_id}.json"


def describe(prediction: Prediction, affine: np.ndarray) -> Told:
    """A prediction as plain JSON: volumes in mL per class, or class and probabilities, or value and unit.

    Of a calibrated run intervals, sets and the Dice to be expected, each beside the coverage that it has.
    """
    if isinstance(prediction, LabelMap):
        voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
        counts = np.bincount(prediction.labels.ravel(), minlength=len(prediction.classes))
        volumes = {name: round(float(n) * voxel_ml, 4) for name, n in zip(prediction.classes, counts)}
        found = {name: volumes[name] for name in prediction.classes[1:]}
        dropped = {name: round(ml, 4) for name, ml in prediction.dropped_ml.items()}
        told: Told = {"kind": "segmentation", "volume_ml": found, "dropped_small_parts_ml": dropped}
        if prediction.volume_interval_ml:
            told["volume_interval_ml"] = {name: _rounded(ends) for name, ends in prediction.volume_interval_ml.items()}
        if prediction.quality:
            told["quality"] = {
                name: {"dice": round(one.dice, 4), "interval": _rounded(one.interval) if one.interval else None}
                for name, one in prediction.quality.items()
            }
        return told | ({"coverage": prediction.coverage} if {"volume_interval_ml", "quality"} & told.keys() else {})
    if isinstance(prediction, ClassScores):
        probabilities = {name: float(p) for name, p in zip(prediction.classes, prediction.probabilities)}
        told = {"kind": "classification", "class": prediction.class_name, "probabilities": probabilities}
        return told if prediction.likely is None else {**told, "likely": prediction.likely, "coverage": prediction.coverage}
    told = {"kind": "regression", "value": prediction.value, "unit": prediction.unit}
    return told if prediction.interval is None else {**told, "interval": [*prediction.interval], "coverage": prediction.coverage}


def _rounded(ends: tuple[float, float]) -> list[float]:
    return [round(end, 4) for end in ends]


def write_json(path: Path, content: Any) -> Path:
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    os.replace(partial, path)
    return path


def _write_seg(path: Path, files: SubjectFiles, labels: np.ndarray, classes: list[str]) -> Path | None:
    from mri_ds.data.dicom.segmentation import write_segmentation

    return write_segmentation(path, labels, classes, source=files.images[0], series=files.series[:1])


def _draw(path: Path, canonical: Sample, predictions: Mapping[str, Prediction]) -> Path | None:
    """The first segmentation over the first channel; nothing when the network segments nothing."""
    for task, prediction in predictions.items():
        if isinstance(prediction, LabelMap):
            title = f"{canonical['subject_id']} · {task}"
            image, spacing_mm = canonical["image"][0], canonical["spacing_mm"]
            return draw_case(path, image, None, prediction.labels, prediction.classes, title, spacing_mm=spacing_mm)
    return None
