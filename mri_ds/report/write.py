"""The report in order: gather, count, draw, write. Returns the numbers that the page shows.

In: RUN and choices.  Out: OUT (one HTML file), RUN/model_card.md and .json, and a dictionary:
{"report", "card", "card_json", "run", "evaluated", "tables": [{"id", "title", "columns", "rows"}], "charts": {id: numbers},
 "cases": [...], "cost": {...}, "viewer": true or why not, "open_items", "notes"}.
"""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mri_ds.evaluation.figures import json_ready
from mri_ds.report import card, cases, charts, cost, maps, tables
from mri_ds.report.gather import gather
from mri_ds.report.page import page
from mri_ds.report.sections import Content
from mri_ds.report.table import Table
from mri_ds.report.viewer import NiiVue, find_niivue

Progress = Callable[[int, int], None]


def write_report(
    run: str | Path,
    out: str | Path,
    *,
    data: str | Path | None = None,
    map_folder: str | Path | None = None,
    watts: float | None = None,
    with_images: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Writes the report of `run` to `out`, whose folder exists, and the model card into the run.

    data: the shards, where they are no longer where the training found them. map_folder: maps as NIfTI; by default RUN/explain.
    watts: of one rank's device. with_images: pictures of subjects, and the viewer. Raises InputError for what is no run, and for
    files in it that cannot be understood.

    >>> write_report("runs/first", "report.html")["open_items"]  # doctest: +SKIP
    44
    """
    g = gather(run, data=data)
    told_cost = cost.cost(g, watts=watts)
    told_card = card.model_card(g, told_cost, card.read_answers(g.run))
    chosen, notes = cases.chosen(g), list(g.notes)
    viewer: NiiVue | str = "left out, as all images"
    if with_images and chosen:
        chosen, found = cases.draw(g, chosen, progress=progress)
        notes += found
        viewer = find_niivue()
    drawn_maps: list[tuple[str, str]] = []
    folder = Path(map_folder) if map_folder else g.run / maps.FOLDER
    if with_images and folder.is_dir():
        drawn_maps, found = maps.draw_maps(folder)
        notes += found
    content = Content(
        g=g,
        tables=_tables(g, told_cost, is_given=watts is not None),
        charts={
            "curves": list(charts.learning_curves(g)),
            "calibration": list(charts.reliability(g)),
            "agreement": list(charts.agreement(g)),
            "experts": list(charts.expert_load(g)),
        },
        cases=chosen,
        maps=drawn_maps,
        viewer=viewer,
        card=told_card,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        notes=notes,
    )
    written = card.write_card(told_card, g.run)
    _write(Path(out), page(content))
    result: dict[str, Any] = json_ready(
        {
            "report": str(out),
            **written,
            "run": str(g.run),
            "evaluated": bool(g.tasks),
            "tables": [table.as_dict() for section in content.tables.values() for table in section],
            "charts": {chart.id: chart.numbers for section in content.charts.values() for chart in section},
            "cases": [case.as_dict() for case in chosen],
            "maps": [name for name, _ in drawn_maps],
            "cost": told_cost,
            "viewer": isinstance(viewer, NiiVue) or viewer,
            "open_items": card.open_items(told_card),
            "notes": notes,
        }
    )
    return result


def _tables(g: Any, told_cost: dict[str, Any], *, is_given: bool) -> dict[str, list[Table]]:
    """By section of the page; a table without a row is left out, but for failures, where none is good news."""
    figures = [table for name, task in g.tasks.items() for table in tables.of_task(name, task)]
    figures.sort(key=lambda table: table.id.endswith("-more"))  # the page shows them in this order
    by_section = {
        "trained": [tables.settings(g), tables.data(g), tables.tasks(g)],
        "figures": [tables.folds(g), *figures],
        "failures": [tables.empty_masks(g)],
        "calibration": [tables.calibration(g)],
        "groups": [tables.strata(g), tables.agreement(g)],
        "cost": [cost.cost_table(told_cost, is_given=is_given)],
    }
    kept = {section: [table for table in found if table.rows] for section, found in by_section.items()}
    if g.tasks:
        kept["failures"].append(tables.failures(g))
    return kept


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    partial.write_text(text)
    os.replace(partial, path)
