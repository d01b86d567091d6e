"""What the page says, section by section; one that has nothing to say is left out.

In: Content.  Out: HTML.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mri_ds import __version__
from mri_ds.config import dump_config
from mri_ds.evaluation.table import HEADLINE
from mri_ds.report.card import Card, open_items, to_fill
from mri_ds.report.cases import Case
from mri_ds.report.charts import Chart
from mri_ds.report.gather import Gathered
from mri_ds.report.markup import Html, join, tag
from mri_ds.report.table import Table, show
from mri_ds.report.viewer import NiiVue


@dataclass(frozen=True)
class Content:
    """Everything that is shown. `tables` and `charts` by section; viewer: NiiVue, or why there is none."""

    g: Gathered
    tables: dict[str, list[Table]]
    charts: dict[str, list[Chart]]
    cases: list[Case]
    maps: list[tuple[str, str]]
    viewer: NiiVue | str
    card: Card
    made: str  # when
    notes: list[str] = field(default_factory=list)


def sections_of(c: Content) -> Iterator[tuple[str, str, Html | None]]:
    yield "trained", "What was trained on what", _trained(c)
    yield (
        "curves",
        "Learning curves",
        _charts(c, "curves") or _missing("metrics.jsonl has no lines: the run has not logged anything."),
    )
    yield "figures", "Figures", _figures(c)
    yield "cases", "Cases", _cases(c)
    yield "viewer", "3-D viewer", _viewer(c)
    yield "failures", "Failures and empty masks", _tables(c, "failures")
    yield "calibration", "Calibration", _calibration(c)
    yield "agreement", "Agreement with the truth", _agreement(c)
    yield "groups", "Groups and readers", _tables(c, "groups")
    yield "experts", "Experts", _experts(c)
    yield "cost", "Cost", _tables(c, "cost")
    yield "card", "Model card", _card(c.card)


def head_of(c: Content) -> Html:
    g = c.g
    held_out = f"{g.evaluation['num_subjects']} held-out subjects" if g.evaluation else "not evaluated yet"
    tiles = []
    for name, task in g.tasks.items():
        key, label = HEADLINE[task["kind"]]
        ends = (task.get("interval") or {}).get(key) or (None, None)
        unit = f" {task['unit']}" if task.get("unit") else ""
        under = [f"95 %: {show(ends[0], 3)} to {show(ends[1], 3)}"] if None not in ends else []
        under.append(f"constant predictor: {show(task['constant'].get(key), 3)}")
        number = tag("b", show(task[key], 3), unit if task["kind"] == "regression" else None)
        tiles.append(tag("li", tag("span", f"{name} · {label}"), number, *(tag("span", line) for line in under)))
    kind = "Cross-validation" if g.is_cross_validation else "Run"
    lead = f"{kind} · {', '.join(g.config.tasks)} · {held_out} · made {c.made} by mri_ds {__version__}"
    images = "It holds images and ids of subjects: keep it as you keep the data." if c.cases else "It holds ids of subjects."
    return join(
        tag("h1", g.run.name),
        tag("p", lead, class_="lead"),
        tag("p", c.card["statement"], class_="note"),
        tag("p", images, class_="note"),
        *(tag("p", note, class_="warn") for note in c.notes),
        tag("ul", *tiles, class_="tiles") if tiles else None,
    )


def _trained(c: Content) -> Html:
    g = c.g
    whole = {"config.yaml": dump_config(g.config), "ds_config.json": json.dumps(g.speed, indent=1)}
    whole["fingerprint"] = g.manifest.fingerprint.model_dump_json(indent=1)
    shards = {name: split.sha256 for name, split in g.manifest.splits.items()}
    whole["SHA-256 of the shards"] = json.dumps(shards, indent=1)
    return join(
        tag("div", *(table.html() for table in c.tables["trained"][:2]), class_="pair"),
        *(table.html() for table in c.tables["trained"][2:]),
        *(tag("details", tag("summary", name), tag("pre", text, tabindex=0)) for name, text in whole.items()),
    )


def _figures(c: Content) -> Html:
    if not c.g.tasks:
        data = str(c.g.shards) if c.g.shards else "SHARDS"
        again = f"mri-ds evaluate --checkpoint {c.g.run} --data {data}"
        if c.g.is_cross_validation:
            again = f"the same mri-ds cross-validate --out {c.g.run} ..."
        return tag(
            "p",
            "This run has not been evaluated. To fill this part, type ",
            tag("code", again),
            " and then this report again.",
            class_="warn",
        )
    how = (
        "Each figure stands with its 95 % bootstrap interval over subjects, and beside a constant predictor, which knows the "
        "training data and never looks at the image. Definitions and the treatment of empty masks: mri_ds/metrics/README.md."
    )
    main = [table for table in c.tables["figures"] if not table.id.endswith("-more")]
    more = [table for table in c.tables["figures"] if table.id.endswith("-more")]
    return join(
        tag("p", how, class_="note"),
        *(table.html() for table in main),
        *(tag("details", tag("summary", table.title), table.html()) for table in more),
    )


def _cases(c: Content) -> Html | None:
    if not c.cases:
        return None
    articles = []
    for number, case in enumerate(c.cases):
        pictures = (tag("img", src=f"data:image/webp;base64,{data}", alt=alt) for data, alt in case.pictures)
        has_viewer = bool(case.viewer) and isinstance(c.viewer, NiiVue)
        button = tag("button", "Open in 3-D", type="button", data_open_case=number) if has_viewer else None
        title = tag(
            "h3",
            f"{case.rank.capitalize()}: {case.subject_id}",
            tag("br"),
            tag("small", f"{case.score_name} {show(case.score, 3)}"),
        )
        said = tag("div", title, tag("ul", *(tag("li", line) for line in case.told)), button)
        articles.append(tag("article", tag("div", *pictures), said))
    how = "Ordered by " + c.cases[0].score_name + ", and predicted anew by the network that did not see the subject in training."
    return join(tag("p", how, class_="note"), tag("div", *articles, class_="cases"))


def _viewer(c: Content) -> Html | None:
    shown = [case for case in c.cases if case.viewer]
    if not shown:
        return None
    if not isinstance(c.viewer, NiiVue):
        return tag("p", c.viewer, " (then make this report again)", class_="warn")

    def select(name: str, title: str, options: Sequence[tuple[str, str]] = ()) -> Html:
        entries = (tag("option", text, value=value) for value, text in options)
        return tag("label", f"{title} ", tag("select", *entries, id=f"viewer-{name}"))

    views = [
        ("planes", "three planes and 3-D"),
        ("axial", "axial"),
        ("coronal", "coronal"),
        ("sagittal", "sagittal"),
        ("solid", "3-D"),
    ]
    dial = tag("input", type="range", id="viewer-opacity", min=0, max=1, step=0.05, value=0.5)
    controls = tag(
        "div",
        select("case", "Case"),
        select("task", "Task"),
        select("layer", "Shown"),
        select("view", "View", views),
        tag("label", "Opacity ", dial),
        class_="controls",
    )
    canvas = tag("canvas", id="viewer-canvas", tabindex=0, role="img", aria_label="Image with labels in three planes and in 3-D")
    return join(
        controls,
        tag("div", canvas, class_="frame"),
        tag("ul", id="viewer-legend", class_="legend"),
        tag("p", id="viewer-place", class_="note"),
        tag("p", "The viewer opens when this part is reached.", id="viewer-status", class_="note", role="status"),
        tag(
            "p",
            "Drag to move the crosshair, scroll for slices, right-drag for contrast. The patient's right is on the left.",
            class_="note",
        ),
    )


def _calibration(c: Content) -> Html | None:
    parts = [_charts(c, "calibration"), _tables(c, "calibration")]
    if c.g.calibration is None and c.g.tasks:
        parts.append(_missing(f"Not calibrated: mri-ds calibrate --checkpoint {c.g.run} makes temperatures, sets and intervals."))
    return join(*parts) if any(parts) else None


def _agreement(c: Content) -> Html | None:
    charts = _charts(c, "agreement")
    how = "Bland-Altman: each point is a subject; lines are the bias and 1.96 standard deviations either side of it."
    return join(tag("p", how, class_="note"), charts) if charts else None


def _experts(c: Content) -> Html | None:
    charts = c.charts["experts"]
    if not charts and not c.maps:
        return None
    how = "Load of each layer's busiest expert over the mean of its experts while training; 1 is even."
    pictures = (
        tag("figure", tag("figcaption", name), tag("img", src=f"data:image/webp;base64,{data}", alt=f"{name} in three planes"))
        for name, data in c.maps
    )
    return join(
        tag("p", how, class_="note") if charts else None,
        tag("div", *(chart.html for chart in charts), class_="charts wide"),
        tag("div", *pictures, class_="maps") if c.maps else None,
    )


def _card(card: Card) -> Html:
    parts = [tag("p", tag("strong", card["statement"])), tag("p", f"{open_items(card)} items are open.", class_="note")]
    for section in card["sections"]:
        entries = []
        for item in section["items"]:
            answer = tag("span", to_fill(item), class_="todo") if item["answer"] is None else join(item["answer"])
            entries += [tag("dt", item["question"]), tag("dd", answer)]
        parts += [tag("h3", section["title"]), tag("dl", *entries, class_="card")]
    return join(*parts)


def foot_of(c: Content) -> Html:
    licence = c.viewer.licence if isinstance(c.viewer, NiiVue) and any(case.viewer for case in c.cases) else None
    quiet = "This page works without a network: its policy forbids every connection."
    return tag("footer", tag("p", quiet), tag("p", licence) if licence else None)


# ---- parts -------------------------------------------------------------------------------------------------------------


def _charts(c: Content, section: str) -> Html | None:
    charts = c.charts[section]
    return tag("div", *(chart.html for chart in charts), class_="charts") if charts else None


def _tables(c: Content, section: str) -> Html | None:
    tables = c.tables[section]
    return join(*(table.html() for table in tables)) if tables else None


def _missing(text: str) -> Html:
    return tag("p", text, class_="note")
