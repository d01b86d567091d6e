"""From an image file to predictions in files, on the image's own grid.

Axes: C channels, D H W voxels.
In: a NIfTI of a network's channels, in any orientation.  Out: SUBJECT_TASK.nii.gz label maps with the input's shape and, word for
word, its header's geometry (both forms, their codes, voxel sizes, units); SUBJECT.json with every task's result; SUBJECT.png to
look at. Each file appears complete or not at all.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mri_ds.data.geometry import read_geometry
from mri_ds.data.images import image_name
from mri_ds.data.layouts import SubjectFiles, load_subject
from mri_ds.data.nifti import write_label
from mri_ds.data.preprocess import to_canonical, to_input_grid
from mri_ds.errors import InputError
from mri_ds.inference.picture import draw_case
from mri_ds.inference.run import Run, load_run
from mri_ds.inference.subject import ClassScores, LabelMap, Prediction, Value, predict_sample
from mri_ds.sample import Sample

__all__ = ["ClassScores", "LabelMap", "Prediction", "Run", "Value", "load_run", "predict_file", "predict_sample"]


def predict_file(
    run: Run, path: str | Path, out_dir: str | Path, *, keep_small_parts: bool = False, series: Sequence[str] = ()
) -> dict[str, Any]:
    """Predicts one subject and writes the results into `out_dir`; returns the content of SUBJECT.json and the written paths.

    A network of several channels takes a 4-D NIfTI, or any one of its channels' files named SUBJECT_CHANNEL.nii.gz, beside
    which it finds the others; or, with `series` as dicom.read_dicom takes them, one DICOM study. Raises InputError for what is
    missing, unreadable or of another number of channels.
    """
    subject_id, images = find_channels(Path(path), run.channels)
    sample = load_subject(SubjectFiles(subject_id=subject_id, images=images, series=tuple(series)), {})
    _check_channels(sample, Path(path), run.channels)
    canonical = to_canonical(sample)
    predictions = predict_sample(run, canonical, keep_small_parts=keep_small_parts)
    geometry = read_geometry(images[0], sample["affine"])

    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"subject_id": subject_id, "tasks": {}, "files": {}}
    for task, prediction in predictions.items():
        result["tasks"][task] = describe(prediction, sample["affine"])
        if isinstance(prediction, LabelMap):
            file = out / f"{subject_id}_{task}.nii.gz"
            labels = to_input_grid(prediction.labels, sample["affine"])
            write_label(file, labels, sample["affine"], geometry)
            result["files"][task] = str(file)
    picture = _draw(out / f"{subject_id}.png", canonical, predictions)
    if picture is not None:
        result["files"]["picture"] = str(picture)
    result["files"]["json"] = str(_write_json(out / f"{subject_id}.json", {key: result[key] for key in ("subject_id", "tasks")}))
    return result


def find_channels(path: Path, channels: list[str]) -> tuple[str, list[Path]]:
    """The subject's name and its files: one (3-D or 4-D), or one per channel in the order of `channels`.

    Raises InputError that names the first channel whose file is not there.
    """
    name = image_name(path) or path.name  # a name that is no image's is refused, with its reason, when it is read
    suffix = path.name[len(name) :]
    longest_first = sorted(channels, key=len, reverse=True)  # "sub_post_T1" is channel post_T1, where there is one
    channel = next((c for c in longest_first if name.endswith(f"_{c}")), None)
    if channel is None:
        return name, [path]
    subject_id = name.removesuffix(f"_{channel}")
    files = [path.with_name(f"{subject_id}_{c}{suffix}") for c in channels]
    for channel, file in zip(channels, files):
        if not file.exists():
            fix = f"the network was trained on {', '.join(channels)}: put them side by side"
            raise InputError(f"no such file: channel {channel} of subject {subject_id}", where=file, fix=fix)
    return subject_id, files


def describe(prediction: Prediction, affine: np.ndarray) -> dict[str, Any]:
    """A prediction as plain JSON: volumes in mL per class, or class and probabilities, or value and unit."""
    if isinstance(prediction, LabelMap):
        voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
        counts = np.bincount(prediction.labels.ravel(), minlength=len(prediction.classes))
        volumes = {name: round(float(n) * voxel_ml, 4) for name, n in zip(prediction.classes, counts)}
        found = {name: volumes[name] for name in prediction.classes[1:]}
        dropped = {name: round(ml, 4) for name, ml in prediction.dropped_ml.items()}
        return {"kind": "segmentation", "volume_ml": found, "dropped_small_parts_ml": dropped}
    if isinstance(prediction, ClassScores):
        probabilities = {name: float(p) for name, p in zip(prediction.classes, prediction.probabilities)}
        return {"kind": "classification", "class": prediction.class_name, "probabilities": probabilities}
    return {"kind": "regression", "value": prediction.value, "unit": prediction.unit}


def _check_channels(sample: Sample, path: Path, channels: list[str]) -> None:
    found = sample["image"].shape[0]
    if found != len(channels):
        names = ", ".join(channels)
        fix = f"give one file per channel named as SUBJECT_{channels[0]}.nii.gz, or a 4-D NIfTI of {names} in this order"
        if len(channels) == 1:
            fix = f"give a 3-D NIfTI of {names}"
        raise InputError(f"has {found} channel(s), and the network was trained on {len(channels)} ({names})", where=path, fix=fix)


def _draw(path: Path, canonical: Sample, predictions: dict[str, Prediction]) -> Path | None:
    """The first segmentation over the first channel; nothing when the network segments nothing."""
    for task, prediction in predictions.items():
        if isinstance(prediction, LabelMap):
            title = f"{canonical['subject_id']} · {task}"
            image, spacing_mm = canonical["image"][0], canonical["spacing_mm"]
            return draw_case(path, image, None, prediction.labels, prediction.classes, title, spacing_mm=spacing_mm)
    return None


def _write_json(path: Path, content: dict[str, Any]) -> Path:
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    os.replace(partial, path)
    return path
