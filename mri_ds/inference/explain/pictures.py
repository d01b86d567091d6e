"""Explanations that are no maps, drawn: learned curves as small multiples, a matrix of tasks as a table of colours.

In: what kan_curves.py and task_attention.py give.  Out: PNG files, complete or not at all.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mri_ds.inference.explain.kan_curves import Curves

COLUMNS = 6
CELL, HEAD = (2.1, 1.6), 0.5  # inches; places are counted, since a layout that is solved for takes seconds for forty plots
DPI = 110
MOST_NAMED = 12  # curves in one plot that a legend can tell apart


def draw_curves(path: Path, layers: Sequence[Curves], title: str) -> Path:
    """One small plot for every input of every layer, with a line for each output; a layer has one scale."""
    rows = [-(-len(layer.inputs) // COLUMNS) for layer in layers]
    height = HEAD + sum(HEAD + num * CELL[1] for num in rows)  # inches, from the top down
    figure = Figure(figsize=(COLUMNS * CELL[0], height))
    figure.text(0.5, 1 - 0.3 * HEAD / height, title, ha="center", va="top", fontsize=12, parse_math=False)
    top = HEAD
    for number, (layer, num_rows) in enumerate(zip(layers, rows), start=1):
        said = f"layer {number}: what each input adds to {_listed(layer.outputs)}"
        figure.text(0.02, 1 - (top + 0.2 * HEAD) / height, said, va="top", fontsize=9, parse_math=False)
        top += HEAD
        for i, name in enumerate(layer.inputs):
            corner = (i % COLUMNS * CELL[0] + 0.4, height - top - (i // COLUMNS + 1) * CELL[1] + 0.25)
            of_cell = (corner[0] / (COLUMNS * CELL[0]), corner[1] / height, 0.72 / COLUMNS, (CELL[1] - 0.55) / height)
            axes = figure.add_axes(of_cell)
            for o, output in enumerate(layer.outputs):
                axes.plot(layer.x[:, i], layer.y[o, i], linewidth=1, label=output)
            axes.set_ylim(float(layer.y.min()) - 1e-6, float(layer.y.max()) + 1e-6)
            axes.locator_params(nbins=3)
            axes.set_title(name, fontsize=7, pad=3, parse_math=False)
            axes.tick_params(labelsize=6)
            if i == 0 and len(layer.outputs) <= MOST_NAMED:
                for text in axes.legend(fontsize=5, frameon=False).get_texts():
                    text.set_parse_math(False)
        top += num_rows * CELL[1]
    return _save(figure, path)


def draw_matrix(path: Path, matrix: np.ndarray, names: Sequence[str], title: str) -> Path:
    """matrix (T, T): row t is what task t reads, 0..1, its numbers in the cells."""
    figure = Figure(figsize=(2.5 + 0.8 * len(names), 1.8 + 0.6 * len(names)), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(matrix, cmap="viridis", vmin=0, vmax=1)
    for (row, column), value in np.ndenumerate(matrix):
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="black" if value > 0.6 else "white", fontsize=8)
    for set_ticks in (axes.set_xticks, axes.set_yticks):
        set_ticks(range(len(names)), names, fontsize=8, parse_math=False)
    axes.set_xlabel("is read")
    axes.set_ylabel("reads")
    axes.set_title(title, fontsize=10, parse_math=False)
    figure.colorbar(shown, ax=axes)
    return _save(figure, path)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= MOST_NAMED else f"{len(names)} hidden values"


def _save(figure: Figure, path: Path) -> Path:
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    figure.savefig(partial, format="png", dpi=DPI)
    os.replace(partial, path)
    return path
