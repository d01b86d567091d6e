"""One subject on one page: image, truth and prediction in three planes.

Axes: D H W in canonical orientation (towards Right, Anterior, Superior), spacing_mm their voxel edges.
In: image (D, H, W), label maps (D, H, W) with class 0 as background.  Out: a PNG.
Shown as radiologists read: the patient's right is on the left of axial and coronal planes, and the face looks left in
sagittal ones. Planes pass through the structures' centroid (where such a plane misses them all, the nearest that does not);
voxels keep their true proportions; the bar is 10 or 50 mm.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from mri_ds.metrics.overlap import dice
from mri_ds.metrics.surface import Spacing

# Okabe and Ito's palette, distinct for colour-blind readers and each visible on grey; then five more, and round again
COLOURS = ["#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#0072B2"]
COLOURS += ["#A6D854", "#FB9A99", "#BC80FF", "#17BECF", "#B07D48"]
LEGEND_COLUMNS = 4
BACKGROUND, INK, FAINT = "#0d1117", "#e6edf3", "#8b949e"
HALO = withStroke(linewidth=2.5, foreground=BACKGROUND)  # keeps letters readable on bright tissue


@dataclass(frozen=True)
class Plane:
    """How a slice lies on the page: `axis` is cut, `up` grows towards the page's top and `across` towards its left."""

    name: str
    axis: int
    across: int
    up: int
    sides: tuple[str, str, str, str]  # letters at the left, right, top and bottom


PLANES = [
    Plane("axial", axis=2, across=0, up=1, sides=("R", "L", "A", "P")),
    Plane("coronal", axis=1, across=0, up=2, sides=("R", "L", "S", "I")),
    Plane("sagittal", axis=0, across=1, up=2, sides=("A", "P", "S", "I")),
]


def draw_case(
    path: str | Path,
    image: np.ndarray,
    truth: np.ndarray | None,
    prediction: np.ndarray,
    classes: Sequence[str],
    title: str,
    *,
    spacing_mm: Spacing = (1.0, 1.0, 1.0),
) -> Path:
    """Writes the page as a PNG and returns its path: complete or not at all.

    image (D, H, W) of any intensity range; truth (or None: its column is left out) and prediction (D, H, W) integer labels on
    the same canonical grid; `classes` names every label, background first.
    """
    path = Path(path)
    figure = case_figure(image, truth, prediction, classes, title, spacing_mm=spacing_mm)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(partial, format="png", dpi=110, facecolor=BACKGROUND)
    os.replace(partial, path)
    return path


def case_figure(
    image: np.ndarray,
    truth: np.ndarray | None,
    prediction: np.ndarray | None,
    classes: Sequence[str],
    title: str,
    *,
    spacing_mm: Spacing = (1.0, 1.0, 1.0),
) -> Figure:
    """The page itself: rows axial, coronal, sagittal. The legend gives each class its colour and, with truth, its Dice.

    Without a prediction the image stands alone.
    """
    assert all(labels is None or labels.shape == image.shape for labels in (truth, prediction)), "one grid for all columns"
    columns: list[tuple[str, np.ndarray | None]] = [("image", None), ("truth", truth), ("prediction", prediction)]
    columns = [columns[0], *(column for column in columns[1:] if column[1] is not None)]
    shown = truth if truth is not None and truth.any() else prediction
    centre = centre_planes(np.zeros(image.shape, dtype=bool) if shown is None else shown)
    extents_mm = np.multiply(image.shape, spacing_mm)
    figure, grid = _page(extents_mm, num_columns=len(columns), num_classes=len(classes) - 1)
    window = np.percentile(image, (1, 99.5))

    for row, plane in enumerate(PLANES):
        index = centre[plane.axis]
        grey = page_slice(image, plane, index)
        size_mm = (extents_mm[plane.across], extents_mm[plane.up])
        for axes, (name, labels) in zip(grid[row], columns):
            _show(axes, grey, size_mm, window)
            if labels is not None:
                _overlay(axes, page_slice(labels, plane, index), size_mm)
            _finish_cell(axes, plane, size_mm)
            if row == 0:
                axes.set_title(name, color=INK, fontsize=11, pad=8)
        _add_scale_bar(grid[row][0], size_mm)
        _name_row(figure, grid[row][0], f"{plane.name} {index}")
    figure.suptitle(title, color=INK, fontsize=13, y=1 - 0.2 / figure.get_figheight(), parse_math=False)  # "$" is a "$"
    if prediction is not None:
        _add_legend(figure, truth, prediction, classes)
    return figure


def centre_planes(labels: np.ndarray) -> list[int]:
    """For every axis the plane nearest to the foreground's centroid that shows foreground; the middle if there is none."""
    inside = np.argwhere(labels > 0)
    if not len(inside):
        return [n // 2 for n in labels.shape]
    return [int(voxels[np.abs(voxels - voxels.mean()).argmin()]) for voxels in inside.T]


def _page(extents_mm: np.ndarray, *, num_columns: int, num_classes: int) -> tuple[Figure, list[list[Axes]]]:
    """A dark figure whose cells have the proportions of the planes, so that no plane floats in empty space."""
    inch_per_mm = 3.2 / extents_mm.max()
    column = max(max(extents_mm[plane.across] for plane in PLANES) * inch_per_mm, 1.6)
    rows = [extents_mm[plane.up] * inch_per_mm for plane in PLANES]
    gap, left, top, bottom = 0.35, 0.6, 0.85, 0.5 + 0.22 * -(-num_classes // LEGEND_COLUMNS)
    width = left + num_columns * column + (num_columns - 1) * gap + 0.25
    height = top + sum(rows) + (len(rows) - 1) * gap + bottom
    figure = Figure(figsize=(width, height), facecolor=BACKGROUND)
    spec = figure.add_gridspec(len(rows), num_columns, height_ratios=rows)
    spec.update(left=left / width, right=1 - 0.25 / width, top=1 - top / height, bottom=bottom / height)
    spec.update(wspace=gap / column, hspace=gap * len(rows) / sum(rows))
    return figure, [[figure.add_subplot(spec[r, c]) for c in range(num_columns)] for r in range(len(rows))]


def page_slice(volume: np.ndarray, plane: Plane, index: int) -> np.ndarray:
    """One slice as (up, across) for origin="lower", with Right and Anterior, the large indices, at the page's left."""
    assert plane.across < plane.up
    return np.take(volume, index, axis=plane.axis).T[:, ::-1]


def _show(axes: Axes, grey: np.ndarray, size_mm: tuple[float, float], window: np.ndarray) -> None:
    extent = (0.0, size_mm[0], 0.0, size_mm[1])
    axes.imshow(grey, cmap="gray", vmin=window[0], vmax=window[1], extent=extent, origin="lower", interpolation="bicubic")


def _overlay(axes: Axes, labels: np.ndarray, size_mm: tuple[float, float]) -> None:
    """Tints every class and outlines it; a border of background closes the outlines at the edge of the volume."""
    padded = np.pad(labels, 1)
    rows, columns = labels.shape
    x = (np.arange(columns + 2) - 0.5) * size_mm[0] / columns  # voxel centres, one voxel outside included
    y = (np.arange(rows + 2) - 0.5) * size_mm[1] / rows
    for label in np.unique(labels[labels > 0]):
        mask = (padded == label).astype(float)
        axes.contourf(x, y, mask, levels=[0.5, 2], colors=[_colour(label)], alpha=0.28)
        axes.contour(x, y, mask, levels=[0.5], colors=[_colour(label)], linewidths=1.1)


def _finish_cell(axes: Axes, plane: Plane, size_mm: tuple[float, float]) -> None:
    axes.set(xlim=(0, size_mm[0]), ylim=(0, size_mm[1]), aspect="equal", anchor="C")
    axes.set_axis_off()
    for letter, x, y in zip(plane.sides, (0.03, 0.97, 0.5, 0.5), (0.5, 0.5, 0.95, 0.05)):
        axes.text(x, y, letter, transform=axes.transAxes, color=INK, fontsize=9, ha="center", va="center", path_effects=[HALO])


def _add_scale_bar(axes: Axes, size_mm: tuple[float, float]) -> None:
    length = 50 if size_mm[0] > 120 else 10
    x, y = 0.05 * size_mm[0], 0.06 * size_mm[1]
    axes.plot([x, x + length], [y, y], color=INK, linewidth=2, solid_capstyle="butt", path_effects=[HALO])
    axes.text(x, y + 0.02 * size_mm[1], f"{length} mm", color=INK, fontsize=8, va="bottom", path_effects=[HALO])


def _name_row(figure: Figure, axes: Axes, name: str) -> None:
    box = axes.get_position(original=True)
    x = box.x0 - 0.25 / figure.get_figwidth()
    figure.text(x, (box.y0 + box.y1) / 2, name, color=FAINT, fontsize=10, rotation=90, ha="center", va="center")


def _add_legend(figure: Figure, truth: np.ndarray | None, prediction: np.ndarray, classes: Sequence[str]) -> None:
    handles: list[Patch] = []
    for label, name in enumerate(classes):
        if label == 0:
            continue
        score = "" if truth is None else f"  Dice {dice(truth == label, prediction == label):.2f}".replace("nan", "-")
        handles.append(Patch(facecolor=_colour(label) + "80", edgecolor=_colour(label), label=name + score))
    columns = min(len(handles), LEGEND_COLUMNS)
    legend = figure.legend(handles=handles, loc="lower center", ncols=columns, frameon=False, fontsize=10)
    for text in legend.get_texts():
        text.set(color=INK, parse_math=False)


def _colour(label: int) -> str:
    return COLOURS[(int(label) - 1) % len(COLOURS)]
