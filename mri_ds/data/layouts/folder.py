"""A plain folder of NIfTI files with a table of subjects.

images/<subject>_<channel>.nii.gz (or images/<subject>.nii.gz: one channel, or all of them in 4-D), or DICOM in its place, named
likewise: a folder or zip of one series, or images/<subject> with a whole study, of which `series` are the channels;
labels/<subject>_<task>.nii.gz, and participants.tsv, tab-separated, whose column participant_id names the subjects, whose
column site (or site_id, scanner) says where they were scanned, and whose others are targets (text: classification, numbers:
regression; empty or n/a: no label). participants.json, where present, is its data dictionary: `Levels` make a column
classification, `Units` are a regression's unit.
dataset.yaml, where present, wins; columns that it does not name are left out. Segmentation tasks need it, because class names
stand nowhere else.
Source: the table as in BIDS 1.10, "Tabular files" and "Participants file".
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from mri_ds.config import TaskConfig
from mri_ds.data.images import image_name
from mri_ds.data.layouts.description import DESCRIPTION, HOW_TO_NAME_CLASSES, NamesMissing, read_description
from mri_ds.data.layouts.sites import site_column, site_of
from mri_ds.data.layouts.strata import strata_of
from mri_ds.data.layouts.subject import Dataset, SubjectFiles
from mri_ds.data.layouts.targets import check_column, check_task, infer_tasks, read_dictionary, values_of
from mri_ds.data.layouts.text import Row, read_table
from mri_ds.data.nifti import stem
from mri_ds.errors import InputError

TABLE, DICTIONARY = "participants.tsv", "participants.json"
ID = "participant_id"
NAMELESS = ""  # the channel of images/<subject>.nii.gz

Files = dict[str, dict[str, Path]]  # subject -> rest of the file's name -> path


def is_folder(src: Path) -> bool:
    return (src / "images").is_dir() and (src / TABLE).is_file()


def find_folder(src: Path) -> Dataset:
    """Matches files to the table's subjects; files of nobody are problems, a subject without its images is an error."""
    table = read_table(src / TABLE, ID)
    images = files_by_subject(src / "images", table.keys(), image_name)
    labels = files_by_subject(src / "labels", table.keys(), stem)
    channels, tasks, series = read_description(src / DESCRIPTION)
    channels = channels or _find_channels(images, src / "images")
    columns_left_out: list[str] = []
    if tasks is None:
        tasks, columns_left_out = _infer_tasks(table, labels, src)
    _check_tasks(tasks, table, labels, src)
    subjects = [
        SubjectFiles(
            subject,
            images_for(subject, images.get(subject, {}), channels, src / "images"),
            {name: path for name, path in labels.get(subject, {}).items() if name in tasks and _is_map(tasks[name])},
            values_of(subject, row, tasks, src / TABLE),
            site=site_of(row, site_column(row), f"{src / TABLE}: {subject}"),
            strata=strata_of(row),
        )
        for subject, row in sorted(table.items())
    ]
    return Dataset("folder", channels, tasks, subjects, [*_orphans(src, subjects), *columns_left_out], series)


def _check_tasks(tasks: Mapping[str, TaskConfig], table: Mapping[str, Row], labels: Files, src: Path) -> None:
    where = src / DESCRIPTION if (src / DESCRIPTION).is_file() else src / TABLE
    maps = {name for files in labels.values() for name in files}
    for name, task in tasks.items():
        check_task(name, task, where)
        if not _is_map(task):
            check_column(name, table, where, src / TABLE)
        elif name not in maps:
            what = f"task {name!r} has no label map of any subject"
            raise InputError(what, where=where, fix=f"put them at labels/<{ID}>_{name}.nii.gz, or take the task out")


def _infer_tasks(table: Mapping[str, Row], labels: Files, src: Path) -> tuple[dict[str, TaskConfig], list[str]]:
    tasks, left_out = infer_tasks(table, src / TABLE, read_dictionary(src / DICTIONARY))
    if labels:
        maps = {name: [own[name] for own in labels.values() if name in own] for own in labels.values() for name in own}
        fix = f"write {DESCRIPTION} with {HOW_TO_NAME_CLASSES}"
        raise NamesMissing(src / "labels", fix, file=src / DESCRIPTION, maps=maps, tasks=tasks)
    if not tasks:
        raise InputError("holds no target", where=src / TABLE, fix="add a column per target, or label maps")
    return tasks, left_out


def _is_map(task: TaskConfig) -> bool:
    return task.kind == "segmentation"


# ---- files of one subject ------------------------------------------------------------------------------------------


def files_by_subject(folder: Path, subjects: Iterable[str], name_of: Callable[[Path], str | None]) -> Files:
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


def images_for(subject: str, own: Mapping[str, Path], channels: list[str], where: Path) -> list[Path]:
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


def _orphans(src: Path, subjects: list[SubjectFiles]) -> list[str]:
    used = {path for subject in subjects for path in (*subject.images, *subject.labels.values())}
    there = [path for folder in ("images", "labels") for path in sorted((src / folder).glob("*")) if image_name(path)]
    return [f"{path.relative_to(src)} belongs to no subject or task" for path in there if path not in used]
