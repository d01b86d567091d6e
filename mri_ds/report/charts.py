"""Which plots a report has, and the numbers in them: learning curves, reliability, Bland-Altman, expert load.

In: Gathered.  Out: Charts, each a dictionary of its numbers for JSON beside the drawing made of them.
Source: Bland and Altman 1986; Guo et al. 2017 (reliability); Wilson 1927 (intervals of shares).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mri_ds.metrics.regression import bland_altman
from mri_ds.report.gather import Gathered
from mri_ds.report.gather import Line as Logged
from mri_ds.report.markup import Html
from mri_ds.report.plot import Level, Line, Plot, Point, heat_map
from mri_ds.report.tables import FIGURES

MOST_POINTS = 240  # of one curve; longer ones are thinned evenly, their last point kept
Z_95 = 1.959964


@dataclass(frozen=True)
class Chart:
    id: str
    numbers: dict[str, Any]
    html: Html


def learning_curves(g: Gathered) -> Iterator[Chart]:
    """Loss, losses of the tasks, figures of held-out subjects while training, learning rate and gradient norm."""
    keys = list(dict.fromkeys(key for lines in g.curves.values() for line in lines for key in line))
    groups = [
        ("loss", "Loss", ["loss"]),
        ("task-losses", "Loss of each task", [key for key in keys if key.startswith("loss/") and key.count("/") == 1]),
        *_validation(keys),
        ("learning-rate", "Learning rate", ["learning_rate"]),
        ("gradient-norm", "Gradient norm before clipping", ["gradient_norm"]),
    ]
    for name, title, wanted in groups:
        lines = list(_lines(g, wanted))
        if lines:
            plot = Plot(title, "step", "", lines=lines)
            yield Chart(f"curve-{name}", {line.name: [list(line.x), list(line.y)] for line in lines}, plot.html())


def reliability(g: Gathered) -> Iterator[Chart]:
    """Of classifications: how often the class that was called is right, by how sure the network was."""
    for name, task in g.tasks.items():
        if task["kind"] != "classification" or not task["num_scored"]:
            continue
        own = [subject[name] for subject in g.subjects if name in subject]
        sure = np.array([max(one["probabilities"].values()) for one in own])
        right = np.array([one["truth"] == one["prediction"] for one in own])
        bins = reliability_bins(sure, right, num_bins=10 if len(own) >= 100 else 5)
        points = [
            Point(b["confidence"], b["accuracy"], f"{b['num']} subjects, {b['confidence']:.2f} sure, {b['accuracy']:.2f} right",
                  b["low"], b["high"], radius=2.5 + 5 * math.sqrt(b["num"] / len(own)))
            for b in bins
        ]  # fmt: skip
        bars = [(b["from"], b["to"] - b["from"], b["num"] / len(own), f"{b['num']} subjects") for b in bins]
        told = f"Points below the diagonal are over-confident. Whiskers: 95 %. Bars: share of the {len(own)} subjects."
        plot = Plot(f"Reliability of {name}", "how sure", "how often right", points=points, bars=bars, diagonal=True,
                    x_range=(0, 1), y_range=(0, 1), description=told)  # fmt: skip
        yield Chart(f"reliability-{name}", {"bins": bins}, plot.html())


def agreement(g: Gathered) -> Iterator[Chart]:
    """Bland-Altman of every regression, and of every structure's volume."""
    for name, task in g.tasks.items():
        own = [(subject["subject_id"], subject[name]) for subject in g.subjects if name in subject]
        if task["kind"] == "regression":
            pairs = [(who, one["truth"], one["prediction"]) for who, one in own]
            yield from _bland_altman(f"bland-altman-{name}", name, task["unit"], pairs)
        elif task["kind"] == "segmentation":
            for label in task["dice"]:
                pairs = [(who, one["truth_ml"][label], one["prediction_ml"][label]) for who, one in own]
                yield from _bland_altman(f"bland-altman-{name}-{label}", f"{name}, volume of {label}", "mL", pairs)


def expert_load(g: Gathered) -> Iterator[Chart]:
    """Load of each layer's busiest expert over the mean of its experts, along the training."""
    for member, logged in g.curves.items():
        lines = [line for line in logged if any(_is_load(key) for key in line)]
        layers = sorted({key for line in lines for key in line if _is_load(key)}, key=lambda key: int(key.split("layer")[-1]))
        if not layers:
            continue
        lines = _thinned(lines, 60)
        rows = [(key.removeprefix("expert_load/"), [float(line.get(key) or math.nan) for line in lines]) for key in layers]
        rows = [(name, [1.0 if math.isnan(value) else value for value in values]) for name, values in rows]
        most = max(max(values) for _, values in rows)
        title = f"Busiest expert over the mean{f', {member}' if member else ''} (1 is even, deepest colour {most:.1f})"
        steps = [line["step"] for line in lines]
        numbers = {"step": steps, **dict(rows)}
        html = heat_map(title, [str(step) for step in steps], rows, most=max(most, 2.0), x_label="step")
        yield Chart(f"expert-load{f'-{member}' if member else ''}", numbers, html)


def reliability_bins(sure: np.ndarray, right: np.ndarray, *, num_bins: int) -> list[dict[str, Any]]:
    """sure (N,) in 0..1, right (N,) bool -> the bins (i / n, (i + 1) / n] that hold any subject; [low, high] is Wilson's."""
    bins = []
    place = np.clip(np.ceil(sure * num_bins).astype(int) - 1, 0, num_bins - 1)
    for i in range(num_bins):
        inside = place == i
        if not inside.any():
            continue
        num, accuracy = int(inside.sum()), float(right[inside].mean())
        low, high = wilson(accuracy, num)
        ends = {"from": i / num_bins, "to": (i + 1) / num_bins}
        bins.append(
            {**ends, "num": num, "confidence": float(sure[inside].mean()), "accuracy": accuracy, "low": low, "high": high}
        )
    return bins


def wilson(share: float, num: int) -> tuple[float, float]:
    """95 % interval of a share seen in `num` independent cases.

    >>> [round(end, 3) for end in wilson(0.5, 10)]
    [0.237, 0.763]
    """
    z2 = Z_95**2
    centre = (share + z2 / (2 * num)) / (1 + z2 / num)
    reach = Z_95 / (1 + z2 / num) * math.sqrt(share * (1 - share) / num + z2 / (4 * num**2))
    return max(0.0, centre - reach), min(1.0, centre + reach)


# ---- parts -------------------------------------------------------------------------------------------------------------


def _bland_altman(id: str, title: str, unit: str, pairs: Sequence[tuple[str, float, float]]) -> Iterator[Chart]:
    if not pairs:
        return
    truth, predicted = (np.array(side, dtype=np.float64) for side in zip(*((t, p) for _, t, p in pairs)))
    found = bland_altman(truth, predicted)
    points = [Point((t + p) / 2, p - t, f"{who}: predicted {p:.4g}, truth {t:.4g} {unit}".rstrip()) for who, t, p in pairs]
    levels = [Level(found.bias, f"bias {found.bias:.3g}", is_main=True)]
    if math.isfinite(found.lower):
        levels += [Level(found.lower, f"-1.96 SD {found.lower:.3g}"), Level(found.upper, f"+1.96 SD {found.upper:.3g}")]
    of_unit = f", {unit}" if unit else ""
    plot = Plot(title, f"mean of prediction and truth{of_unit}", f"prediction - truth{of_unit}", points=points, levels=levels)
    numbers = {"bias": found.bias, "lower": found.lower, "upper": found.upper, "num": len(pairs)}
    yield Chart(id, {key: value if math.isfinite(value) else None for key, value in numbers.items()}, plot.html())


def _validation(keys: Sequence[str]) -> Iterator[tuple[str, str, list[str]]]:
    """One plot for each figure of validation, of a task as a whole; they have scales of their own."""
    held_out = [key for key in keys if key.startswith("validation/") and key.count("/") == 2]
    for key in held_out:
        _, task, figure = key.split("/")
        classes = [other for other in keys if other.startswith(f"{key}/")]
        told = FIGURES.get(figure, figure.replace("_", " "))
        yield key.replace("/", "-"), f"{told} of {task}, on held-out subjects", [key, *classes]


def _lines(g: Gathered, wanted: Sequence[str]) -> Iterator[Line]:
    colour = 0
    for member, logged in g.curves.items():
        for key in wanted:
            found = [line for line in logged if line.get(key) is not None]
            if not found:
                continue
            found = _thinned(found, MOST_POINTS)
            of_all = key == wanted[0] and len(wanted) > 1 and key.startswith("validation/")
            short = key if len(wanted) == 1 else "all classes" if of_all else key.split("/")[-1]
            name = " ".join(filter(None, (member, short)))
            yield Line(name, [line["step"] for line in found], [float(line[key]) for line in found], colour)
            colour += 1


def _thinned(lines: list[Logged], most: int) -> list[Logged]:
    if len(lines) <= most:
        return lines
    chosen = np.unique(np.linspace(0, len(lines) - 1, most).round().astype(int))
    return [lines[i] for i in chosen]


def _is_load(key: str) -> bool:
    return key.startswith("expert_load/layer") and key.count("/") == 1
