"""A table of numbers: once as data, for JSON and for the page, so that both hold the same.

In: columns and rows.  Out: plain dictionaries, or HTML whose every number carries its full value beside the rounded text.
A cell is text, a number, an interval [low, high], or None where nothing is defined.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mri_ds.report.markup import Html, join, tag


@dataclass(frozen=True)
class Column:
    """digits: after the point, of numbers; None: text or whole numbers as they are."""

    name: str
    digits: int | None = None
    is_number: bool = True


def text(name: str) -> Column:
    return Column(name, is_number=False)


@dataclass(frozen=True)
class Table:
    """`id` is unique on a page. The last row stands apart when `has_total`. The first cell of a row is its heading."""

    id: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    note: str = ""
    has_total: bool = False

    def as_dict(self) -> dict[str, Any]:
        rows = [[list(cell) if isinstance(cell, tuple) else cell for cell in row] for row in self.rows]
        return {"id": self.id, "title": self.title, "columns": [column.name for column in self.columns], "rows": rows}

    def html(self) -> Html:
        head = (tag("th", c.name, scope="col", class_="n" if c.is_number else None) for c in self.columns)
        body = []
        for number, row in enumerate(self.rows):
            cells = [tag("th", cell_html(row[0], self.columns[0]), scope="row")]
            for cell, column in zip(row[1:], self.columns[1:], strict=True):
                cells.append(tag("td", cell_html(cell, column), class_="n" if column.is_number else None))
            is_total = self.has_total and number == len(self.rows) - 1
            body.append(tag("tr", *cells, class_="total" if is_total else None))
        caption = tag("caption", self.title, tag("small", self.note) if self.note else None)
        table = tag("table", caption, tag("thead", tag("tr", *head)), tag("tbody", *body), id=self.id, data_table=True)
        # wide tables scroll by themselves, and by the keyboard too
        return tag("div", table, class_="scroll", tabindex=0, role="region", aria_label=self.title)


def cell_html(cell: Any, column: Column) -> Html:
    if cell is None:
        return tag("span", "–", class_="none", aria_label="not defined")
    if isinstance(cell, list | tuple):
        low, high = cell
        if low is None or high is None:
            return cell_html(None, column)
        return join(cell_html(low, column), " to ", cell_html(high, column))
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        return join(cell)
    return tag("data", show(cell, column.digits), value=repr(cell))


def show(value: float | None, digits: int | None) -> str:
    """As the page shows a number.

    >>> show(0.12345, 3), show(1234567, None), show(None, 2), show(-0.0001, 2)
    ('0.123', '1,234,567', '–', '0.00')
    """
    if value is None:
        return "–"
    if digits is None:
        return f"{value:,}"
    told = f"{value:,.{digits}f}"
    return told.removeprefix("-") if not told.strip("-0.,") else told
