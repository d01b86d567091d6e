"""A dataset as one table, for files that lie as no layout has them: `mri-ds shard subjects.csv`.

    subject,patient,image:T1w,image:FLAIR,label:tissue,age,grade
    s01a,p01,visit1/t1.nii.gz,visit1/flair.nii.gz,visit1/seg.nii.gz,61.5,few
    s01b,p01,visit2/t1.nii.gz,visit2/flair.nii.gz,n/a,62.3,many

`subject` names the samples, `patient` (optional) who they are of: no split divides a patient. `image:NAME` is a channel each;
`image` alone is one file of one channel, or of all in 4-D, or a DICOM study (folder or zip): `series:NAME` columns then say which
series of it a channel is, where numbers differ from study to study. `label:TASK` is a label map each; `site` (or site_id,
scanner) is where a subject was scanned; every other column is a target (text: classification, numbers: regression). An empty
cell or n/a is no label. Paths are relative to the table, and may not leave its folder by `..`; absolute ones are taken as they
are. Cells are separated by commas, semicolons or tabs.
A YAML file of the table's name (subjects.yaml) has `channels` and `tasks` as dataset.yaml of a folder; label maps need it,
because class names stand nowhere else. subjects.json, where present, is a data dictionary (`Levels`, `Units`) as in BIDS.
"""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from mri_ds.config import TaskConfig, nearest
from mri_ds.data.layouts.description import HOW_TO_NAME_CLASSES, NamesMissing, read_description
from mri_ds.data.layouts.sites import site_column, site_of
from mri_ds.data.layouts.strata import strata_of
from mri_ds.data.layouts.subject import Dataset, SubjectFiles
from mri_ds.data.layouts.targets import check_column, check_task, infer_tasks, read_dictionary, values_of
from mri_ds.data.layouts.text import Row, is_missing, read_table
from mri_ds.data.nifti import stem
from mri_ds.errors import InputError

ID, PATIENT, IMAGE, LABEL, SERIES = "subject", "patient", "image", "label", "series"
DELIMITERS = ",;\t"
SUFFIXES = (".csv", ".tsv")


def is_csv(src: Path) -> bool:
    return src.suffix.lower() in SUFFIXES and src.is_file()


def find_csv(src: Path) -> Dataset:
    """Every row a subject, whose files must exist; files beside theirs that no row names are problems."""
    table = read_table(src, ID, delimiters=DELIMITERS)
    columns = list(next(iter(table.values())))
    channels, tasks, series = read_description(src.with_suffix(".yaml"))
    channels = _channels(columns, channels, src)
    site = site_column(columns)
    targets = {subject: _targets_of(row) for subject, row in table.items()}
    patients = {subject: row[PATIENT] for subject, row in table.items() if not is_missing(row.get(PATIENT, ""))}
    maps = {
        name: [src.parent / row[column] for row in table.values() if not is_missing(row[column])]
        for name in _named(LABEL, columns)
        for column in [f"{LABEL}:{name}"]
    }
    tasks, left_out = _tasks(tasks, columns, targets, patients, maps, src)
    subjects = [
        SubjectFiles(
            subject,
            _images(subject, row, channels, src),
            _labels(subject, row, tasks, src),
            values_of(subject, targets[subject], tasks, src),
            patient=patients.get(subject, ""),
            series=_series(subject, row, channels, src),
            site=site_of(row, site, f"{src}: {subject}"),
            strata=strata_of(row),
        )
        for subject, row in sorted(table.items())
    ]
    return Dataset("CSV", channels, tasks, subjects, [*_unlisted(src, table, subjects), *left_out], series)


def _targets_of(row: Row) -> Row:
    return {name: cell for name, cell in row.items() if name not in (PATIENT, IMAGE) and ":" not in name}


def _channels(columns: list[str], described: list[str], src: Path) -> list[str]:
    """Channel names in order: as described, else as the columns stand."""
    kinds = {IMAGE + ":", LABEL + ":", SERIES + ":"}
    if wrong := next((c for c in columns if ":" in c and not any(c.startswith(k) and c != k for k in kinds)), None):
        raise InputError(f"column {wrong!r} is of no kind", where=src, fix="write image:CHANNEL, label:TASK or series:CHANNEL")
    named = _named(IMAGE, columns)
    if bool(named) == (IMAGE in columns):
        what = "has both an image column and image:CHANNEL columns" if named else "has no image column"
        raise InputError(what, where=src, fix="write image:CHANNEL columns, or one image column")
    if (series := _named(SERIES, columns)) and named:
        raise InputError("has image:CHANNEL and series:CHANNEL columns", where=src, fix="series are of one image, a study")
    named = named or series
    if named and (absent := next((channel for channel in described if channel not in named), None)):
        fix = nearest(absent, named)
        kind = SERIES if series else IMAGE
        raise InputError(f"channel {absent!r} is no column {kind}:{absent}", where=src.with_suffix(".yaml"), fix=fix)
    return described or named or [IMAGE]


def _tasks(
    described: dict[str, TaskConfig] | None,
    columns: list[str],
    targets: Mapping[str, Row],
    patients: Mapping[str, str],
    label_maps: Mapping[str, list[Path]],
    src: Path,
) -> tuple[dict[str, TaskConfig], list[str]]:
    maps = _named(LABEL, columns)
    where = src.with_suffix(".yaml")
    if described is None:
        tasks, left_out = infer_tasks(targets, src, read_dictionary(src.with_suffix(".json")), patients)
        if maps:
            fix = f"write {where.name} beside it, with {HOW_TO_NAME_CLASSES}"
            raise NamesMissing(src, fix, file=where, maps=label_maps, tasks=tasks)
        if not tasks:
            raise InputError("holds no target", where=src, fix="add a column per target, or label:TASK columns")
        return tasks, left_out
    for name, task in described.items():
        check_task(name, task, where)
        if task.kind != "segmentation":
            check_column(name, targets, where, src)
        elif name not in maps:
            fix = nearest(name, maps) if maps else "add it, or take the task out"
            raise InputError(f"task {name!r} has no column {LABEL}:{name}", where=where, fix=fix)
    return described, [f"column '{LABEL}:{name}' is no task of {where.name}: left out" for name in maps if name not in described]


# ---- files ---------------------------------------------------------------------------------------------------------


def _images(subject: str, row: Row, channels: list[str], src: Path) -> list[Path]:
    columns = [IMAGE] if IMAGE in row else [f"{IMAGE}:{channel}" for channel in channels]
    return [file_of(subject, column, row[column], src) for column in columns]


def _series(subject: str, row: Row, channels: list[str], src: Path) -> tuple[str, ...]:
    cells = [row[f"{SERIES}:{channel}"] for channel in channels if f"{SERIES}:{channel}" in row]
    if any(map(is_missing, cells)):
        fix = f"give the number, or a pattern, or take the row out; `mri-ds series {row[IMAGE]}` lists them"
        raise InputError("a series is not named", where=f"{src}: {subject}", fix=fix)
    return tuple(cells)


def _named(kind: str, columns: list[str]) -> list[str]:
    """["T1w", "FLAIR"] of the columns image:T1w and image:FLAIR."""
    return [column.removeprefix(kind + ":") for column in columns if column.startswith(kind + ":")]


def _labels(subject: str, row: Row, tasks: Mapping[str, TaskConfig], src: Path) -> dict[str, Path]:
    columns = {name: f"{LABEL}:{name}" for name, task in tasks.items() if task.kind == "segmentation"}
    return {name: file_of(subject, column, row[column], src) for name, column in columns.items() if not is_missing(row[column])}


def file_of(subject: str, column: str, cell: str, src: Path) -> Path:
    where = f"{src}: {subject}"
    if is_missing(cell):
        raise InputError(f"{column} is empty", where=where, fix="give its path, or take the row out")
    if not PurePosixPath(cell).is_absolute() and ".." in PurePosixPath(cell).parts:
        raise InputError(f"{column} = {cell!r} leaves the table's folder", where=where, fix="give an absolute path")
    path = src.parent / cell
    if "\0" in cell or not path.exists():
        raise InputError(f"{column} = {cell!r} is missing", where=where, fix="put the file there, or correct the path")
    return path


def _unlisted(src: Path, table: Mapping[str, Row], subjects: list[SubjectFiles]) -> list[str]:
    """Images in the folders of listed ones, below the table's own, that no row names."""
    listed = {
        src.parent / cell
        for row in table.values()
        for column, cell in row.items()
        if column.partition(":")[0] in (IMAGE, LABEL) and not is_missing(cell)
    }
    folders = sorted({path.parent for path in listed if path.is_relative_to(src.parent)})
    there = [path for folder in folders for path in sorted(folder.glob("*")) if stem(path)]
    return [f"{path.relative_to(src.parent)} is in no row of {src.name}" for path in there if path not in listed]
