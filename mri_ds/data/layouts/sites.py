"""Where subjects were scanned, by a column of their table. Nothing else tells: DICOM's name of the institution identifies people.

A column named site, site_id or scanner (the first of these that is there, capitals or not) is the site and no target, unless the
dataset's description names it as a task: then it is both.
"""

from collections.abc import Iterable, Mapping

from mri_ds.data.layouts.text import is_missing
from mri_ds.errors import InputError

SITE_COLUMNS = ("site", "site_id", "scanner")
MAX_LETTERS = 64  # as many as a shard keeps


def site_column(columns: Iterable[str]) -> str | None:
    """
    >>> site_column(["age", "SITE_ID", "Scanner"])
    'SITE_ID'
    """
    by_name = {column.lower(): column for column in columns}
    return next((by_name[name] for name in SITE_COLUMNS if name in by_name), None)


def site_of(row: Mapping[str, str], column: str | None, where: str) -> str:
    """ "" where nothing is said. Raises InputError for a text that is no code."""
    cell = row.get(column, "") if column else ""
    if is_missing(cell):
        return ""
    if len(cell) > MAX_LETTERS or not cell.isprintable():
        raise InputError(f"{column} has {len(cell)} letters", where=where, fix=f"write a code of at most {MAX_LETTERS}")
    return cell
