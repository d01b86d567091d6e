"""The layout of the Medical Segmentation Decathlon: dataset.json, imagesTr/, labelsTr/.

dataset.json lists pairs of image and label, names the channels ("modality" or "channel_names") and the classes ("labels").
The task is named after the dataset. Source: Antonelli et al. 2022.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from mri_ds.config import TaskConfig
from mri_ds.data.images import image_name
from mri_ds.data.layouts.dataset_json import DESCRIPTION, classes_of, listed_file, names_by_number, task_name
from mri_ds.data.layouts.subject import Dataset, SubjectFiles
from mri_ds.data.layouts.text import read_json
from mri_ds.data.nifti import stem
from mri_ds.errors import InputError


def is_msd(src: Path) -> bool:
    return (src / DESCRIPTION).is_file()


def find_msd(src: Path) -> Dataset:
    """Reads dataset.json and checks that every file it lists is there; files it does not list are problems."""
    where = src / DESCRIPTION
    raw = read_json(where)
    classes = classes_of(raw.get("labels"), where)
    channels = names_by_number(raw.get("modality", raw.get("channel_names", {"0": "image"})), "modality", where)
    task = task_name(raw.get("name"), src)
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


def _subject(pair: object, src: Path, task: str, where: Path) -> SubjectFiles:
    if not isinstance(pair, dict) or not isinstance(pair.get("image"), str):
        raise InputError(f"training entry {pair!r} names no image", where=where, fix='write {"image": ..., "label": ...}')
    image = listed_file(src, pair["image"], "image", where)
    labels = {task: listed_file(src, str(pair["label"]), "label", where)} if pair.get("label") else {}
    return SubjectFiles(image_name(image) or image.name, [image], labels)


def _orphans(src: Path, subjects: Sequence[SubjectFiles]) -> list[str]:
    listed = {path for subject in subjects for path in (*subject.images, *subject.labels.values())}
    there = [path for folder in ("imagesTr", "labelsTr") for path in sorted((src / folder).glob("*")) if stem(path)]
    return [f"{path.relative_to(src)} is not listed in {DESCRIPTION}" for path in there if path not in listed]
