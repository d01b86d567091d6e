"""A plain folder of NIfTI files with a table of subjects.

images/<subject>_<channel>.nii.gz (or images/<subject>.nii.gz), labels/<subject>_<task>.nii.gz, participants.tsv whose first
column is participant_id and whose others are targets (text: classification, numbers: regression; empty or n/a: no label).
dataset.yaml, where present, wins: `channels: [T1w, T2w]` and `tasks: {tissue: {kind: segmentation, classes: [...]}, ...}`;
columns that it does not name are left out. Segmentation tasks need it, because class names stand nowhere else.
"""

import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml

from mri_ds.config import TaskConfig, validate
from mri_ds.data.layouts.subject import Dataset, SubjectFiles
from mri_ds.data.nifti import stem
from mri_ds.errors import InputError

TABLE = "participants.tsv"
DESCRIPTION = "dataset.yaml"
MISSING = {"", "n/a", "na", "nan"}


def is_folder(src: Path) -> bool:
    return (src / "images").is_dir() and (src / TABLE).is_file()


def find_folder(src: Path) -> Dataset:
    """Matches files to the table's subjects; files of nobody are problems, a subject without its images an error."""
    table = _read_table(src / TABLE)
    channels, tasks = _read_description(src / DESCRIPTION)
    images, labels = (_files_by_subject(src / name, list(table)) for name in ("images", "labels"))
    channels = channels or _channels(images, src)
    if tasks is None:
        tasks = _infer_tasks(table, labels, src)
    subjects = [_subject(subject, row, images, labels, channels, tasks, src) for subject, row in sorted(table.items())]
    return Dataset("folder", channels, tasks, subjects, _orphans(src, subjects))


def _read_table(where: Path) -> dict[str, dict[str, str]]:
    try:
        with where.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise InputError(f"cannot be read as a table: {err}", where=where, fix="write tab-separated text") from None
    if not rows or "participant_id" not in rows[0]:
        raise InputError("has no participant_id column or no row", where=where, fix="write a header line with participant_id")
    table: dict[str, dict[str, str]] = {}
    for row in rows:
        subject = (row.pop("participant_id") or "").strip()
        if not subject or subject in table or "/" in subject:
            raise InputError(
                f"participant_id {subject!r} is empty, doubled or not a name", where=where, fix="give each subject one row"
            )
        table[subject] = {column: (value or "").strip() for column, value in row.items() if column}
    return table


def _read_description(where: Path) -> tuple[list[str], dict[str, TaskConfig] | None]:
    if not where.is_file():
        return [], None
    try:
        raw = yaml.safe_load(where.read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as err:
        raise InputError(f"is not YAML: {err}", where=where, fix="correct the syntax") from None
    if not isinstance(raw, dict) or not set(raw) <= {"channels", "tasks"}:
        raise InputError("may hold `channels` and `tasks` only", where=where, fix="take the rest out")
    channels = raw.get("channels") or []
    if not isinstance(channels, list) or not all(isinstance(c, str) and c for c in channels):
        raise InputError(f"channels = {channels!r} is not a list of names", where=where, fix="write channels: [T1w, T2w]")
    tasks = validate({"tasks": raw["tasks"]}, where=str(where)).tasks if raw.get("tasks") else None
    for name, task in (tasks or {}).items():
        if task.kind != "regression" and len(task.classes) < 2:
            raise InputError(f"task {name!r} has fewer than two classes", where=where, fix="list them under `classes`")
    return channels, tasks


def _files_by_subject(folder: Path, subjects: list[str]) -> dict[str, dict[str, Path]]:
    """{subject: {rest of the file name: path}}; of subjects whose ids begin alike, the longest that fits."""
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in sorted(folder.glob("*")) if folder.is_dir() else []:
        name = stem(path)
        owner = max((s for s in subjects if name and (name == s or name.startswith(f"{s}_"))), key=len, default=None)
        if owner is not None and name is not None:
            found[owner][name[len(owner) + 1 :]] = path
    return found


def _channels(images: dict[str, dict[str, Path]], src: Path) -> list[str]:
    if not images:
        raise InputError(
            "no image belongs to a subject of the table", where=src / "images", fix="name them <participant_id>_<channel>.nii.gz"
        )
    return sorted(next(iter(images.values())))


def _infer_tasks(table: dict[str, dict[str, str]], labels: dict[str, dict[str, Path]], src: Path) -> dict[str, TaskConfig]:
    if labels:
        fix = f"write {DESCRIPTION} with tasks: {{NAME: {{kind: segmentation, classes: [background, ...]}}}}"
        raise InputError("label maps need class names", where=src / "labels", fix=fix)
    tasks = {}
    for column in next(iter(table.values())):
        values = [row[column] for row in table.values() if row[column].lower() not in MISSING]
        if values:
            tasks[column] = _infer_task(values)
    if not tasks:
        raise InputError("holds no target", where=src / TABLE, fix="add a column per target, or label maps")
    return tasks


def _infer_task(values: list[str]) -> TaskConfig:
    try:
        for value in values:
            float(value)
    except ValueError:
        return TaskConfig(kind="classification", classes=sorted(set(values)))
    return TaskConfig(kind="regression")


def _subject(
    subject: str,
    row: dict[str, str],
    images: dict[str, dict[str, Path]],
    labels: dict[str, dict[str, Path]],
    channels: list[str],
    tasks: dict[str, TaskConfig],
    src: Path,
) -> SubjectFiles:
    own = images.get(subject, {})
    paths = [own[channel] for channel in channels if channel in own] or ([own[""]] if set(own) == {""} else [])
    if len(paths) != len(channels) and not (len(paths) == 1 and "" in own):
        missing = ", ".join(f"{subject}_{c}.nii.gz" for c in channels if c not in own)
        raise InputError(
            f"{missing} is missing", where=src / "images", fix="put the file there, or take the subject out of the table"
        )
    values: dict[str, Any] = {
        name: row[name]
        for name, task in tasks.items()
        if task.kind != "segmentation" and row.get(name, "").lower() not in MISSING
    }
    maps = {name: labels[subject][name] for name in tasks if name in labels.get(subject, {})}
    return SubjectFiles(subject, paths, maps, values)


def _orphans(src: Path, subjects: list[SubjectFiles]) -> list[str]:
    used = {path for subject in subjects for path in (*subject.images, *subject.labels.values())}
    there = [path for folder in ("images", "labels") for path in sorted((src / folder).glob("*")) if stem(path)]
    return [f"{path.relative_to(src)} belongs to no subject or task" for path in there if path not in used]
