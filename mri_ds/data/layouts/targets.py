"""Columns of a table as things to learn: which become tasks, what kind, and the value of each subject.

A column that the dataset's description names is what the description says. Without a description every column that can be learnt
from becomes a task: of text or of levels that a data dictionary lists, classification; of numbers, regression. A column that
looks as if it named or dated a person is left out; one that says where subjects were scanned is their site (`sites.py`).
Source: data dictionaries (`Levels`, `Units`) as in BIDS 1.10, "Tabular files".
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mri_ds.config import TaskConfig, nearest
from mri_ds.data.layouts.sites import site_column
from mri_ds.data.layouts.subject import parse_value
from mri_ds.data.layouts.text import Row, is_missing, read_json
from mri_ds.errors import InputError

TASK_NAME = re.compile(r"[\w-]+")  # it becomes part of file names
IDENTIFYING = {"name", "surname", "firstname", "lastname", "initials", "id", "uid", "mrn", "ssn", "dob", "birth", "birthday"}
IDENTIFYING |= {"birthdate", "date", "phone", "email", "address", "zip", "postcode", "accession", "identifier"}


def read_dictionary(where: Path) -> dict[str, dict[str, Any]]:
    """{column: {"Levels": ..., "Units": ...}} of a file beside the table; {} where there is none."""
    if not where.is_file():
        return {}
    return {column: entry for column, entry in read_json(where).items() if isinstance(entry, dict)}


def infer_tasks(
    table: Mapping[str, Row],
    where: Path,
    dictionary: Mapping[str, Mapping[str, Any]] | None = None,
    patients: Mapping[str, str] | None = None,
) -> tuple[dict[str, TaskConfig], list[str]]:
    """A task per column that can be learnt from, and a line about each column that cannot.

    `patients` says of which patient a row is, where one has several: what only they share is no class.
    """
    tasks, left_out = {}, []
    columns = next(iter(table.values()))
    site = site_column(columns)
    for column in (name for name in columns if name != site):
        values = [
            ((patients or {}).get(subject, subject), row[column]) for subject, row in table.items() if not is_missing(row[column])
        ]
        task = _infer_task(column, values, (dictionary or {}).get(column, {}))
        if isinstance(task, TaskConfig):
            tasks[column] = task
        else:
            left_out.append(f"column {column!r} of {where.name} {task}: left out")
    return tasks, left_out


def _infer_task(column: str, values: list[tuple[str, str]], entry: Mapping[str, Any]) -> TaskConfig | str:
    """The task of (patient, cell) pairs, or why there is none."""
    if not TASK_NAME.fullmatch(column):
        return "has a name with more than letters, digits, _ and -"
    if not IDENTIFYING.isdisjoint(re.findall("[a-z]+", re.sub("([a-z])([A-Z])", r"\1 \2", column).lower())):
        return "may identify a person"
    cells = {cell for _, cell in values}
    if not cells:
        return "has no value"
    if levels := [str(level) for level in entry.get("Levels") or () if not is_missing(str(level))]:
        if unknown := sorted(cells - set(levels)):
            return f"holds {unknown[0]!r}, which its data dictionary does not list"
        return TaskConfig(kind="classification", classes=levels) if len(set(levels)) == len(levels) > 1 else "has one level"
    if all(map(_is_number, cells)):
        return TaskConfig(kind="regression", unit=str(entry.get("Units") or ""))
    if len(cells) == 1:
        return "has one value"
    if len(set(values)) == len(cells):  # each is of one patient: a name, a remark
        return "differs for every subject"
    return TaskConfig(kind="classification", classes=sorted(cells))


def check_task(name: str, task: TaskConfig, where: Path) -> None:
    """Raises InputError for a task that no dataset can have: its name, or its classes."""
    if not TASK_NAME.fullmatch(name):
        fix = "name it with letters, digits, _ and - only: it becomes part of file names"
        raise InputError(f"task name {name!r} cannot be used", where=where, fix=fix)
    if task.kind != "regression" and len(set(task.classes)) < max(2, len(task.classes)):
        what = f"task {name!r} has the classes {task.classes}"
        raise InputError(what, where=where, fix="list at least two different ones under `classes`")


def check_column(name: str, table: Mapping[str, Row], where: Path, table_path: Path) -> None:
    """Raises InputError for a target that is no column, or has no value. `where` is what names it."""
    columns: Iterable[str] = next(iter(table.values()), {})
    if name not in columns:
        raise InputError(f"task {name!r} is no column of {table_path.name}", where=where, fix=nearest(name, list(columns)))
    if all(is_missing(row[name]) for row in table.values()):
        raise InputError(f"column {name!r} has no value", where=table_path, fix="fill it in, or take the task out")


def values_of(subject: str, row: Row, tasks: Mapping[str, TaskConfig], where: Path) -> dict[str, str | float]:
    """{task: class name or number} of one row; a cell that says n/a, and a column that is not there, are no value."""
    wanted = {name: task for name, task in tasks.items() if task.kind != "segmentation" and not is_missing(row.get(name, ""))}
    return {name: parse_value(row[name], name, task, where=f"{where}: {subject}") for name, task in wanted.items()}


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
