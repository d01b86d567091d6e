"""Small text files that describe a dataset: JSON, YAML and tables, read whole, with a bound on their size.

In: files a stranger may have written.  Out: plain values.  Every fault is one InputError that names the file.
Source: tables as in BIDS 1.10, "Tabular files".
"""

import csv
import json
from pathlib import Path
from typing import Any

import yaml

from mri_ds.errors import InputError

MAX_BYTES = 2**26  # a table of a million subjects has 64 MB
MISSING = {"", "n/a", "na", "nan"}
DELIMITERS = {"\t": "tab", ",": "comma", ";": "semicolon"}

Row = dict[str, str]


def read_json(where: Path) -> dict[str, Any]:
    """A JSON object. Raises InputError for what is none."""
    content = _read(where)
    try:
        raw = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as err:
        raise InputError(f"is not JSON: {err}", where=where, fix="correct the syntax") from None
    if not isinstance(raw, dict):
        raise InputError("is not an object", where=where, fix='write {"key": value, ...}')
    return raw


def read_yaml(where: Path, keys: str) -> dict[str, Any]:
    """A YAML mapping ({} for an empty file). `keys` is what to write into it."""
    content = _read(where)
    try:
        raw = yaml.safe_load(content.decode("utf-8")) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as err:
        raise InputError(f"is not YAML: {err}", where=where, fix="correct the syntax") from None
    if not isinstance(raw, dict):
        raise InputError(f"holds a {type(raw).__name__}, not a mapping", where=where, fix=f"write {keys}")
    return raw


def read_table(where: Path, id_column: str, *, delimiters: str = "\t") -> dict[str, Row]:
    """{id: {column: cell}} without the id column; cells are stripped. Of several delimiters, the header line has the right one.

    Raises InputError for a table without that column, with two rows of one id, two columns of one name, or rows of other lengths.
    """
    header, rows = _lines(where, id_column, delimiters)
    table: dict[str, Row] = {}
    for row in rows:
        if len(row) != len(header):
            what = f"the row of {row[0]!r} has {len(row)} cells, the header has {len(header)}"
            raise InputError(
                what, where=where, fix=f"separate cells by one {_named(delimiters)} each, and write n/a for no value"
            )
        cells = dict(zip(header, row))
        name = cells.pop(id_column)
        if not name or "/" in name or not name.isprintable():
            raise InputError(f"{id_column} {name!r} is not a name", where=where, fix="name each subject, without a slash")
        if name in table:
            raise InputError(f"{id_column} {name!r} stands in two rows", where=where, fix="give each subject one row")
        table[name] = cells
    if not table:
        raise InputError("has no subject", where=where, fix="write one row per subject below the header")
    return table


def is_missing(cell: str) -> bool:
    """Whether a cell says that there is no value: empty, or n/a in any case."""
    return cell.lower() in MISSING


def _lines(where: Path, id_column: str, delimiters: str) -> tuple[list[str], list[list[str]]]:
    """The header, which has `id_column`, and the rows below it."""
    content = _read(where)
    try:
        text = content.decode("utf-8-sig").splitlines(keepends=True)
        first = next((line for line in text if line.strip()), "")
        delimiter = max(delimiters, key=first.count)
        lines = [[cell.strip() for cell in line] for line in csv.reader(text, delimiter=delimiter, strict=True) if line]
    except (ValueError, csv.Error) as err:
        raise InputError(
            f"cannot be read as a table: {err}", where=where, fix=f"write {_named(delimiters)}-separated UTF-8"
        ) from None
    header, rows = (lines[0], lines[1:]) if lines else ([], [])
    if id_column not in header:
        fix = f"write a header line, {_named(delimiters)}-separated, with {id_column}"
        raise InputError(f"has no column {id_column}", where=where, fix=fix)
    if double := next((name for name in header if header.count(name) > 1), None):
        raise InputError(f"has two columns {double!r}", where=where, fix="rename one of them")
    return header, rows


def _named(delimiters: str) -> str:
    return DELIMITERS[delimiters[0]]


def _read(where: Path) -> bytes:
    try:
        if where.stat().st_size > MAX_BYTES:
            raise InputError(f"has over {MAX_BYTES} bytes", where=where, fix="give the text that describes the dataset")
        return where.read_bytes()
    except OSError as err:
        raise InputError(f"cannot be opened ({err.strerror})", where=where, fix="check the path and its permissions") from None
