"""A plain folder of NIfTI files with a table of subjects.

images/<subject>_<channel>.nii.gz (or images/<subject>.nii.gz: one channel, or all of them in 4-D), or DICOM in its place:
a folder or zip of one series, named likewise;
labels/<subject>_<task>.nii.gz, and participants.tsv, tab-separated, whose column participant_id names the subjects and whose
others are targets (text: classification, numbers: regression; empty or n/a: no label).
dataset.yaml, where present, wins: `channels: [T1w, T2w]` and `tasks: {tissue: {kind: segmentation, classes: [...]}, ...}`;
columns that it does not name are left out. Segmentation tasks need it, because class names stand nowhere else.
Source: the table as in BIDS 1.10, "Tabular files" and "Participants file".
"""

import csv
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import yaml

from mri_ds.config import TaskConfig, nearest, validate
from mri_ds.data.images import image_name
from mri_ds.data.layouts.subject import Dataset, SubjectFiles, parse_value
from mri_ds.data.nifti import stem
from mri_ds.errors import InputError

TABLE = "participants.tsv"
DESCRIPTION = "dataset.yaml"
ID = "participant_id"
MISSING = {"", "n/a", "na", "nan"}
NAMELESS = ""  # the channel of images/<subject>.nii.gz

Row = dict[str, str]
Files = dict[str, dict[str, Path]]  # subject -> rest of the file's name -> path


def is_folder(src: Path) -> bool:
    return (src / "images").is_dir() and (src / TABLE).is_file()


def find_folder(src: Path) -> Dataset:
    """Matches files to the table's subjects; files of nobody are problems, a subject without its images is an error."""
    table = _read_table(src / TABLE)
    images = _files_by_subject(src / "images", table.keys(), image_name)
    labels = _files_by_subject(src / "labels", table.keys(), stem)
    channels, tasks = _read_description(src / DESCRIPTION)
    channels = channels or _find_channels(images, src / "images")
    columns_left_out: list[str] = []
    if tasks is None:
        tasks, columns_left_out = _infer_tasks(table, labels, src)
    _check_tasks(tasks, table, labels, src)
    subjects = [
        SubjectFiles(
            subject,
            _images(subject, images.get(subject, {}), channels, src / "images"),
            {name: path for name, path in labels.get(subject, {}).items() if name in tasks and _is_map(tasks[name])},
            _values(subject, row, tasks, src / TABLE),
        )
        for subject, row in sorted(table.items())
    ]
    return Dataset("folder", channels, tasks, subjects, [*_orphans(src, subjects), *columns_left_out])


# ---- the table and the description ---------------------------------------------------------------------------------


def _read_table(where: Path) -> dict[str, Row]:
    """{subject: {column: cell}} without the column participant_id; cells are stripped."""
    try:
        with where.open(newline="", encoding="utf-8-sig") as file:
            lines = [[cell.strip() for cell in line] for line in csv.reader(file, delimiter="\t", strict=True) if line]
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise InputError(f"cannot be read as a table: {err}", where=where, fix="write tab-separated UTF-8 text") from None
    header, rows = (lines[0], lines[1:]) if lines else ([], [])
    if ID not in header:
        raise InputError(f"has no column {ID}", where=where, fix=f"write a header line, tab-separated, with {ID}")
    if double := next((name for name in header if header.count(name) > 1), None):
        raise InputError(f"has two columns {double!r}", where=where, fix="rename one of them")
    table: dict[str, Row] = {}
    for row in rows:
        if len(row) != len(header):
            what = f"the row of {row[0]!r} has {len(row)} cells, the header has {len(header)}"
            raise InputError(what, where=where, fix="separate cells by one tab each, and write n/a for what is not known")
        cells = dict(zip(header, row))
        subject = cells.pop(ID)
        if not subject or "/" in subject:
            raise InputError(f"{ID} {subject!r} is not a name", where=where, fix="name each subject, without a slash")
        if subject in table:
            raise InputError(f"{ID} {subject!r} stands in two rows", where=where, fix="give each subject one row")
        table[subject] = cells
    if not table:
        raise InputError("has no subject", where=where, fix="write one row per subject below the header")
    return table


def _read_description(where: Path) -> tuple[list[str], dict[str, TaskConfig] | None]:
    """Channels ([]: not said) and tasks (None: not said)."""
    if not where.is_file():
        return [], None
    try:
        raw = yaml.safe_load(where.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as err:
        raise InputError(f"is not YAML: {err}", where=where, fix="correct the syntax") from None
    if not isinstance(raw, dict):
        raise InputError(f"holds a {type(raw).__name__}, not a mapping", where=where, fix="write `channels:` and `tasks:`")
    if unknown := [key for key in raw if key not in ("channels", "tasks")]:
        fix = nearest(str(unknown[0]), ["channels", "tasks"])
        raise InputError(f"unknown key {str(unknown[0])!r}", where=where, fix=fix)
    channels = raw.get("channels") or []
    named = isinstance(channels, list) and all(isinstance(channel, str) and channel for channel in channels)
    if not named or len(set(channels)) < len(channels):
        what = f"channels = {channels!r} is not a list of different names"
        raise InputError(what, where=where, fix="write channels: [T1w, T2w]")
    return channels, validate({"tasks": raw["tasks"]}, where=str(where)).tasks if raw.get("tasks") else None


def _check_tasks(tasks: Mapping[str, TaskConfig], table: Mapping[str, Row], labels: Files, src: Path) -> None:
    where = src / DESCRIPTION if (src / DESCRIPTION).is_file() else src / TABLE
    columns = list(next(iter(table.values())))
    maps = {name for files in labels.values() for name in files}
    for name, task in tasks.items():
        if not re.fullmatch(r"[\w-]+", name):
            fix = "name it with letters, digits, _ and - only: it becomes part of file names"
            raise InputError(f"task name {name!r} cannot be used", where=where, fix=fix)
        if task.kind != "regression" and len(set(task.classes)) < max(2, len(task.classes)):
            what = f"task {name!r} has the classes {task.classes}"
            raise InputError(what, where=where, fix="list at least two different ones under `classes`")
        if _is_map(task) and name not in maps:
            what = f"task {name!r} has no label map of any subject"
            raise InputError(what, where=where, fix=f"put them at labels/<{ID}>_{name}.nii.gz, or take the task out")
        if not _is_map(task) and name not in columns:
            raise InputError(f"task {name!r} is no column of {TABLE}", where=where, fix=nearest(name, columns))
        if not _is_map(task) and all(_is_missing(row[name]) for row in table.values()):
            raise InputError(f"column {name!r} has no value", where=src / TABLE, fix="fill it in, or take the task out")


def _infer_tasks(table: Mapping[str, Row], labels: Files, src: Path) -> tuple[dict[str, TaskConfig], list[str]]:
    """A task per column that can be learnt from, and a line about each column that cannot."""
    if labels:
        fix = f"write {DESCRIPTION} with tasks: {{NAME: {{kind: segmentation, classes: [background, ...]}}}}"
        raise InputError("label maps need class names", where=src / "labels", fix=fix)
    tasks, left_out = {}, []
    for column in next(iter(table.values())):
        values = [row[column] for row in table.values() if not _is_missing(row[column])]
        if all(map(_is_number, values)) and values:
            tasks[column] = TaskConfig(kind="regression")
        elif 2 <= len(set(values)) < len(values):
            tasks[column] = TaskConfig(kind="classification", classes=sorted(set(values)))
        else:
            which = "has no value" if not values else "has one value" if len(set(values)) == 1 else "differs for every subject"
            left_out.append(f"column {column!r} of {TABLE} {which}: left out")
    if not tasks:
        raise InputError("holds no target", where=src / TABLE, fix="add a column per target, or label maps")
    return tasks, left_out


def _is_map(task: TaskConfig) -> bool:
    return task.kind == "segmentation"


def _is_missing(cell: str) -> bool:
    return cell.lower() in MISSING


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


# ---- files and values of one subject -------------------------------------------------------------------------------


def _files_by_subject(folder: Path, subjects: Iterable[str], name_of: Callable[[Path], str | None]) -> Files:
    """{subject: {rest of the file name: path}}; of subjects whose ids begin alike, the longest that fits."""
    known, found = set(subjects), defaultdict[str, dict[str, Path]](dict)
    for path in sorted(folder.glob("*")):
        name = name_of(path)
        if name is None:
            continue
        ends = [len(name), *(i for i in range(len(name) - 1, 0, -1) if name[i] == "_")]
        owner = next((name[:end] for end in ends if name[:end] in known), None)
        if owner is None:
            continue
        rest = name[len(owner) + 1 :]
        if rest in found[owner]:
            what = f"{found[owner][rest].name} and {path.name} are two files of one kind"
            raise InputError(what, where=folder, fix="keep one of them")
        found[owner][rest] = path
    return dict(found)


def _find_channels(images: Files, where: Path) -> list[str]:
    """All channels that any subject has, sorted; "image" where files name none."""
    if not images:
        raise InputError("no image belongs to a subject of the table", where=where, fix=f"name them <{ID}>_<channel>.nii.gz")
    return sorted({name for files in images.values() for name in files} - {NAMELESS}) or ["image"]


def _images(subject: str, own: Mapping[str, Path], channels: list[str], where: Path) -> list[Path]:
    """One file per channel in order, or the one nameless file that holds them all."""
    missing = [channel for channel in channels if channel not in own]
    if missing == channels and NAMELESS in own:
        return [own[NAMELESS]]
    if missing:
        names = ", ".join(f"{subject}_{channel}.nii.gz" for channel in missing)
        either = f" (or {subject}.nii.gz)" if missing == channels else ""
        fix = f"put it there, take {subject} out of {TABLE}, or list the channels to use in {DESCRIPTION}"
        raise InputError(f"{names}{either} is missing", where=where, fix=fix)
    return [own[channel] for channel in channels]


def _values(subject: str, row: Row, tasks: Mapping[str, TaskConfig], where: Path) -> dict[str, str | float]:
    wanted = {name: task for name, task in tasks.items() if not _is_map(task) and not _is_missing(row[name])}
    return {name: parse_value(row[name], name, task, where=f"{where}: {subject}") for name, task in wanted.items()}


def _orphans(src: Path, subjects: list[SubjectFiles]) -> list[str]:
    used = {path for subject in subjects for path in (*subject.images, *subject.labels.values())}
    there = [path for folder in ("images", "labels") for path in sorted((src / folder).glob("*")) if image_name(path)]
    return [f"{path.relative_to(src)} belongs to no subject or task" for path in there if path not in used]
