"""nnU-Net's raw data: DatasetNNN_Name/ with dataset.json, imagesTr/<case>_<channel number>.nii.gz, labelsTr/<case>.nii.gz.

dataset.json (version 2) names channels ("channel_names"), classes ("labels") and the files' ending; version 1 (TaskNNN_Name) says
"modality" and lists images without their channel numbers. Cases are found on disk, as nnU-Net does, or listed under "dataset".
The task is named after the dataset. An ignore label and regions (several values under one name) are refused: losses here know
one class per voxel, and every voxel of a label map counts.
Source: nnU-Net v2, documentation/dataset_format.md, region_based_training.md, ignore_label.md.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mri_ds.config import TaskConfig
from mri_ds.data.layouts.dataset_json import DESCRIPTION, classes_of, listed_file, names_by_number, task_name
from mri_ds.data.layouts.subject import Dataset, SubjectFiles
from mri_ds.data.layouts.text import read_json
from mri_ds.data.nifti import stem
from mri_ds.errors import InputError

CHANNEL = re.compile(r"(?P<case>.+)_(?P<number>\d{4})")
ENDINGS = (".nii.gz", ".nii", ".img", ".img.gz")

Cases = Mapping[str, Mapping[int, Path]]  # case -> channel number -> image


def is_nnunet(src: Path) -> bool:
    """dataset.json without pairs that exist as listed, beside images numbered by channel or with a file ending named."""
    if not (src / DESCRIPTION).is_file():
        return False
    try:
        raw = read_json(src / DESCRIPTION)
    except InputError:
        return False  # the layout that this file is certain to have reports it
    pairs = raw.get("training")
    if isinstance(pairs, list) and any(isinstance(p, dict) and (src / str(p.get("image"))).is_file() for p in pairs):
        return False
    return "file_ending" in raw or any(CHANNEL.fullmatch(stem(path) or "") for path in (src / "imagesTr").glob("*"))


def find_nnunet(src: Path) -> Dataset:
    """Every case with all its channels and a label map; images of no label, and labels of no image, are problems."""
    where = src / DESCRIPTION
    raw = read_json(where)
    _check_ending(raw, where)
    _check_labels(raw.get("labels"), where)
    key = "channel_names" if "channel_names" in raw else "modality"
    channels, classes = names_by_number(raw.get(key), key, where), classes_of(raw.get("labels"), where)
    task = task_name(raw.get("name"), src)
    listed = raw.get("dataset")
    images, labels = _find_listed(listed, src, where) if listed else (find_images(src), _find_labels(src))
    subjects, problems = [], []
    for case in sorted(images):
        if case in labels:
            subjects.append(SubjectFiles(case, channels_of(case, images[case], len(channels), src), {task: labels[case]}))
        else:
            problems.append(f"imagesTr/{case} has no label map in labelsTr")
    if not subjects:
        fix = "put images at imagesTr/<case>_0000.nii.gz and labels at labelsTr/<case>.nii.gz"
        raise InputError("has no case with image and label", where=src, fix=fix)
    problems += _orphans(src, subjects, images.keys() - labels.keys()) + _count(raw.get("numTraining"), len(subjects))
    return Dataset("nnU-Net", channels, {task: TaskConfig(kind="segmentation", classes=classes)}, subjects, problems)


# ---- dataset.json --------------------------------------------------------------------------------------------------


def _check_ending(raw: Mapping[str, Any], where: Path) -> None:
    ending = raw.get("file_ending", ".nii.gz")
    if ending not in ENDINGS:
        what = f"file_ending is {ending!r}"
        raise InputError(what, where=where, fix="convert the files to .nii.gz: 2-D pictures and other formats are not read")


def _check_labels(labels: object, where: Path) -> None:
    for name, value in labels.items() if isinstance(labels, dict) else ():
        if isinstance(value, list):
            what = f"label {name!r} is a region of the values {value}, and a voxel has one class here"
            fix = "give each value a name of its own; regions can be put together from predictions"
            raise InputError(what, where=where, fix=fix)
        if name == "ignore":
            what = f"label 'ignore' ({value}) marks voxels that nobody labelled, and here every voxel of a label map counts"
            raise InputError(what, where=where, fix="complete those label maps, or take the cases and the label out")


def _count(declared: object, found: int) -> list[str]:
    if declared is None or declared == found:
        return []
    return [f"{DESCRIPTION} says that there are {declared} training cases, and {found} are complete"]


def _find_listed(listed: object, src: Path, where: Path) -> tuple[dict[str, dict[int, Path]], dict[str, Path]]:
    """The cases of "dataset": {case: {"images": [...], "label": ...}}, paths relative to the folder."""
    fix = 'write "dataset": {"case": {"images": ["imagesTr/case_0000.nii.gz"], "label": "labelsTr/case.nii.gz"}}'
    if not isinstance(listed, dict):
        raise InputError("'dataset' is no mapping of cases", where=where, fix=fix)
    images, labels = {}, {}
    for case, files in listed.items():
        if not isinstance(files, dict) or not isinstance(files.get("images"), list) or "/" in case:
            raise InputError(f"case {case!r} lists no images", where=where, fix=fix)
        images[case] = {i: listed_file(src, str(name), "image", where) for i, name in enumerate(files["images"])}
        if files.get("label"):
            labels[case] = listed_file(src, str(files["label"]), "label", where)
    return images, labels


# ---- files ---------------------------------------------------------------------------------------------------------


def find_images(src: Path, name: str = "imagesTr") -> dict[str, dict[int, Path]]:
    cases = defaultdict[str, dict[int, Path]](dict)
    for path in sorted((src / name).glob("*")):
        if match := CHANNEL.fullmatch(stem(path) or ""):
            number = int(match["number"])
            if number in cases[match["case"]]:
                what = f"{cases[match['case']][number].name} and {path.name} are two files of one channel"
                raise InputError(what, where=src / name, fix="keep one of them")
            cases[match["case"]][number] = path
    return dict(cases)


def _find_labels(src: Path) -> dict[str, Path]:
    labels: dict[str, Path] = {}
    for path in sorted((src / "labelsTr").glob("*")):
        if (name := stem(path)) is not None:
            if name in labels:
                what = f"{labels[name].name} and {path.name} are two label maps of one case"
                raise InputError(what, where=src / "labelsTr", fix="keep one of them")
            labels[name] = path
    return labels


def channels_of(case: str, own: Mapping[int, Path], num_channels: int, src: Path) -> list[Path]:
    for number in range(num_channels):
        if number not in own:
            fix = f"put it there, or take {case} out; {DESCRIPTION} names {num_channels} channels"
            raise InputError(f"{case}_{number:04d}.nii.gz is missing", where=src / "imagesTr", fix=fix)
    return [own[number] for number in range(num_channels)]


def _orphans(src: Path, subjects: list[SubjectFiles], unlabelled: set[str]) -> list[str]:
    """Files of no complete case, but not the images of cases that are already named for want of a label."""
    used = {path for subject in subjects for path in (*subject.images, *subject.labels.values())}
    lines = []
    for path in sorted((src / "imagesTr").glob("*")):
        match = CHANNEL.fullmatch(stem(path) or "")
        if stem(path) and path not in used and not (match and match["case"] in unlabelled):
            lines.append(f"imagesTr/{path.name} is no channel of a case")
    labels = [path for path in sorted((src / "labelsTr").glob("*")) if stem(path) and path not in used]
    return lines + [f"labelsTr/{path.name} has no image in imagesTr" for path in labels]
