"""The layout of the Medical Segmentation Decathlon: dataset.json, imagesTr/, labelsTr/.

dataset.json lists pairs of image and label, names the channels ("modality" or "channel_names") and the classes ("labels").
The task is named after the dataset. Source: Antonelli et al. 2022.
"""

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from mri_ds.config import TaskConfig
from mri_ds.data.images import image_name
from mri_ds.data.layouts.subject import Dataset, SubjectFiles
from mri_ds.data.nifti import stem
from mri_ds.errors import InputError

DESCRIPTION = "dataset.json"


def is_msd(src: Path) -> bool:
    return (src / DESCRIPTION).is_file()


def find_msd(src: Path) -> Dataset:
    """Reads dataset.json and checks that every file it lists is there; files it does not list are problems."""
    where = src / DESCRIPTION
    raw = _read(where)
    classes = _by_number(raw.get("labels"), "labels", where)
    if len(classes) < 2:
        raise InputError(f"'labels' names one class, {classes[0]!r}", where=where, fix='write {"0": "background", "1": ...}')
    channels = _by_number(raw.get("modality", raw.get("channel_names", {"0": "image"})), "modality", where)
    task = re.sub(r"[^a-z0-9]+", "_", str(raw.get("name") or src.resolve().name).lower()).strip("_") or "segmentation"
    pairs = raw.get("training")
    if not isinstance(pairs, list) or not pairs:
        raise InputError("lists no training pairs", where=where, fix='write "training": [{"image": ..., "label": ...}]')
    subjects = sorted((_subject(pair, src, task, where) for pair in pairs), key=lambda subject: subject.subject_id)
    for one, following in pairwise(subjects):
        if one.subject_id == following.subject_id:
            fix = "list each image once, each under a file name of its own"
            raise InputError(f"subject {one.subject_id!r} is listed twice", where=where, fix=fix)
    tasks = {task: TaskConfig(kind="segmentation", classes=classes)}
    return Dataset("MSD", channels, tasks, subjects, _orphans(src, subjects))


def _read(where: Path) -> dict[str, Any]:
    try:
        raw = json.loads(where.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as err:
        raise InputError(f"is not JSON: {err}", where=where, fix="correct the syntax") from None
    if not isinstance(raw, dict):
        raise InputError("is not an object", where=where, fix="see the Medical Segmentation Decathlon's dataset.json")
    return raw


def _by_number(raw: object, key: str, where: Path) -> list[str]:
    """{"0": "background", "1": "Anterior"}, or nnU-Net's {"background": 0, ...}, -> names in order."""
    fix = f'write "{key}": {{"0": ..., "1": ...}}, numbered from 0 without gaps'
    if not isinstance(raw, dict) or not raw:
        raise InputError(f"has no {key!r}", where=where, fix=fix)
    try:
        by_number = all(str(k).isdigit() for k in raw)
        numbered = {int(k): str(v) for k, v in raw.items()} if by_number else {int(v): k for k, v in raw.items()}
    except (TypeError, ValueError):
        numbered = {}
    if sorted(numbered) != list(range(len(raw))):
        raise InputError(f"{key!r} = {raw} is not numbered from 0 without gaps", where=where, fix=fix)
    if len(set(numbered.values())) < len(raw):
        raise InputError(f"{key!r} = {raw} gives one name twice", where=where, fix=fix)
    return [numbered[i] for i in range(len(numbered))]


def _subject(pair: object, src: Path, task: str, where: Path) -> SubjectFiles:
    if not isinstance(pair, dict) or not isinstance(pair.get("image"), str):
        raise InputError(f"training entry {pair!r} names no image", where=where, fix='write {"image": ..., "label": ...}')
    image = _listed(src, pair["image"], "image", where)
    labels = {task: _listed(src, str(pair["label"]), "label", where)} if pair.get("label") else {}
    return SubjectFiles(image_name(image) or image.name, [image], labels)


def _listed(src: Path, name: str, what: str, where: Path) -> Path:
    """A listed file, which must exist and whose name must not leave the folder. (A link inside it may: the user laid it.)"""
    listed = PurePosixPath(name)
    if listed.is_absolute() or ".." in listed.parts:
        raise InputError(f"{what} {name!r} lies outside the dataset", where=where, fix="list only files of this folder")
    path = src / listed
    if not path.exists():
        raise InputError(f"{what} {name!r} is missing", where=where, fix="put the file there, or take the entry out")
    return path


def _orphans(src: Path, subjects: Sequence[SubjectFiles]) -> list[str]:
    listed = {path for subject in subjects for path in (*subject.images, *subject.labels.values())}
    there = [path for folder in ("imagesTr", "labelsTr") for path in sorted((src / folder).glob("*")) if stem(path)]
    return [f"{path.relative_to(src)} is not listed in {DESCRIPTION}" for path in there if path not in listed]
