"""Plots as SVG inside the page: lines, points, heat maps. Colours and letters are the page's (classes of style.css), for light,
dark and paper; every mark says its numbers when it is pointed at.

In: plain numbers.  Out: Html. x and y are data; a pixel is 1/100 of a plot's width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from mri_ds.report.markup import Html, join, tag

WIDTH, HEIGHT = 420, 250
WIDE = 840  # of what stands alone on its line
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 38
NUM_COLOURS = 7  # --c0 .. of style.css


@dataclass(frozen=True)
class Line:
    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0


@dataclass(frozen=True)
class Point:
    """`low` and `high`: a whisker. `told`: what pointing at it says."""

    x: float
    y: float
    told: str
    low: float | None = None
    high: float | None = None
    radius: float = 3.5


@dataclass(frozen=True)
class Level:
    """A horizontal line with a name."""

    y: float
    name: str
    is_main: bool = False


@dataclass(frozen=True)
class Plot:
    """title is also what a screen reader says, with `description`. x_range, y_range: fixed ends, else those of the data."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line] = ()
    points: Sequence[Point] = ()
    levels: Sequence[Level] = ()
    diagonal: bool = False  # the line of equals
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    description: str = ""
    bars: Sequence[tuple[float, float, float, str]] = field(default=())  # (x, width, height, told) from the bottom, faint

    def html(self) -> Html:
        """A figure with its legend."""
        x0, x1, y0, y1 = self._ranges()
        to_x, to_y = _Scale(x0, x1, LEFT, WIDTH - RIGHT), _Scale(y0, y1, HEIGHT - BOTTOM, TOP)
        parts = [_axes(to_x, to_y, self.x_label, self.y_label)]
        for x, width, height, told in self.bars:
            top, left = to_y(height), to_x(x)
            box = {"x": left, "y": top, "width": to_x(x + width) - left, "height": HEIGHT - BOTTOM - top}
            parts.append(tag("rect", tag("title", told), class_="bar", **{k: _n(v) for k, v in box.items()}))
        if self.diagonal:
            low, high = max(x0, y0), min(x1, y1)
            parts.append(_line(to_x(low), to_y(low), to_x(high), to_y(high), "guide"))
        for level in self.levels:
            y = to_y(level.y)
            parts.append(_line(LEFT, y, WIDTH - RIGHT, y, "level main" if level.is_main else "level"))
            parts.append(tag("text", level.name, x=WIDTH - RIGHT - 3, y=_n(y - 4), text_anchor="end", class_="tick"))
        parts += [_path(line, to_x, to_y) for line in self.lines]
        parts += [_point(point, to_x, to_y) for point in self.points]
        return _figure(self.title, self.description, HEIGHT, parts, [(line.name, line.colour) for line in self.lines])

    def _ranges(self) -> tuple[float, float, float, float]:
        xs = [x for line in self.lines for x in line.x] + [point.x for point in self.points]
        ys = [y for line in self.lines for y in line.y if math.isfinite(y)] + [level.y for level in self.levels]
        ys += [y for point in self.points for y in (point.y, point.low, point.high) if y is not None]
        return (*(self.x_range or _padded(xs)), *(self.y_range or _padded(ys)))


def heat_map(
    title: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[float]]], *, most: float, x_label: str
) -> Html:
    """Values from 1 (faint) to `most` (full) as cells; each says its own when it is pointed at."""
    height = TOP + 26 * len(rows) + BOTTOM
    width = (WIDE - LEFT - RIGHT) / max(len(columns), 1)
    parts: list[Html] = []
    for number, (name, values) in enumerate(rows):
        y = TOP + 26 * number
        parts.append(tag("text", name, x=LEFT - 6, y=y + 16, text_anchor="end", class_="tick"))
        for place, (column, value) in enumerate(zip(columns, values, strict=True)):
            strength = min(max((value - 1) / max(most - 1, 1e-9), 0), 1)
            told = tag("title", f"{name}, {x_label} {column}: {value:.2f}")
            box = {"x": _n(LEFT + place * width), "y": y, "width": _n(width + 0.2), "height": 24}
            parts.append(tag("rect", told, class_="heat", fill_opacity=f"{0.06 + 0.94 * strength:.3f}", **box))
    for place in sorted({0, len(columns) // 2, len(columns) - 1}) if columns else []:
        x = LEFT + (place + 0.5) * width
        parts.append(tag("text", columns[place], x=_n(x), y=height - 22, text_anchor="middle", class_="tick"))
    middle = LEFT + (WIDE - LEFT - RIGHT) / 2
    parts.append(tag("text", x_label, x=_n(middle), y=height - 6, text_anchor="middle", class_="label"))
    return _figure(title, "", height, parts, [], width=WIDE)


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers in [low, high], about `wanted` of them.

    >>> ticks(0, 1)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if not high > low:
        return [low]
    rough = (high - low) / wanted
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / ((self.high - self.low) or 1) * (self.end - self.start)


def _padded(values: Sequence[float]) -> tuple[float, float]:
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return low - room, high + room


def _axes(to_x: _Scale, to_y: _Scale, x_label: str, y_label: str) -> Html:
    parts: list[Html] = []
    for value in ticks(to_y.low, to_y.high):
        y = to_y(value)
        parts.append(_line(LEFT, y, WIDTH - RIGHT, y, "grid"))
        parts.append(tag("text", f"{value:g}", x=LEFT - 6, y=_n(y + 3.5), text_anchor="end", class_="tick"))
    for value in ticks(to_x.low, to_x.high):
        parts.append(tag("text", f"{value:g}", x=_n(to_x(value)), y=HEIGHT - BOTTOM + 15, text_anchor="middle", class_="tick"))
    parts.append(_line(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, "axis"))
    middle_x, middle_y = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    parts.append(tag("text", x_label, x=_n(middle_x), y=HEIGHT - 6, text_anchor="middle", class_="label"))
    turned = f"rotate(-90 12 {_n(middle_y)})"
    parts.append(tag("text", y_label, x=12, y=_n(middle_y), text_anchor="middle", class_="label", transform=turned))
    return join(*parts)


def _path(line: Line, to_x: _Scale, to_y: _Scale) -> Html:
    told, pen = "", "M"
    for x, y in zip(line.x, line.y):
        if not math.isfinite(y):
            pen = "M"
            continue
        told += f"{pen}{_n(to_x(x))} {_n(to_y(y))}"
        pen = "L"
    dots = [
        tag("circle", tag("title", f"{line.name}, {x:g}: {y:.4g}"), cx=_n(to_x(x)), cy=_n(to_y(y)), r=2)
        for x, y in zip(line.x, line.y)
        if math.isfinite(y)
    ]
    return tag("g", tag("path", d=told), *dots, class_=f"line c{line.colour % NUM_COLOURS}")


def _point(point: Point, to_x: _Scale, to_y: _Scale) -> Html:
    x = to_x(point.x)
    whisker = None
    if point.low is not None and point.high is not None:
        whisker = _line(x, to_y(point.low), x, to_y(point.high), "whisker")
    circle = tag("circle", tag("title", point.told), cx=_n(x), cy=_n(to_y(point.y)), r=_n(point.radius))
    return tag("g", whisker, circle, class_="point")


def _figure(
    title: str, description: str, height: float, parts: Sequence[Html], legend: Sequence[tuple[str, int]], *, width: int = WIDTH
) -> Html:
    label, box = f"{title}. {description}".strip(), f"0 0 {width} {_n(height)}"
    drawing = tag("svg", *parts, viewBox=box, role="img", aria_label=label, class_="plot")
    entries = [tag("li", tag("i", class_=f"swatch c{colour % NUM_COLOURS}"), name) for name, colour in legend if len(legend) > 1]
    below = tag("ul", *entries, class_="legend") if entries else None
    note = tag("p", description, class_="note") if description else None
    return tag("figure", tag("figcaption", title), drawing, below, note, class_="chart")


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Html:
    return tag("line", x1=_n(x1), y1=_n(y1), x2=_n(x2), y2=_n(y2), class_=kind)


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
