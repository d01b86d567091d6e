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
DPI = 110
MOST_NAMED = 12  # curves in one plot that a legend can tell apart


def draw_curves(path: Path, layers: Sequence[Curves], title: str) -> Path:
    """One small plot for every input of every layer, with a line for each output."""
    rows = [-(-len(layer.inputs) // COLUMNS) for layer in layers]
    figure = Figure(figsize=(2.1 * COLUMNS, 1.7 * sum(rows) + 0.6 * len(rows) + 0.5), layout="constrained")
    figure.suptitle(title, parse_math=False)
    parts = figure.subfigures(len(layers), 1, squeeze=False, height_ratios=rows)
    for number, (part, layer, num_rows) in enumerate(zip(parts[:, 0], layers, rows), start=1):
        part.suptitle(f"layer {number}: what each input adds to {_listed(layer.outputs)}", fontsize=9, parse_math=False)
        grid = part.subplots(num_rows, COLUMNS, sharey=True, squeeze=False).ravel()
        for i, axes in enumerate(grid):
            if i >= len(layer.inputs):
                axes.set_axis_off()
                continue
            for o, name in enumerate(layer.outputs):
                axes.plot(layer.x[:, i], layer.y[o, i], linewidth=1, label=name)
            axes.axhline(0, color="0.8", linewidth=0.6, zorder=0)
            axes.set_title(layer.inputs[i], fontsize=7, parse_math=False)
            axes.tick_params(labelsize=6)
        if len(layer.outputs) <= MOST_NAMED:
            for text in grid[0].legend(fontsize=6, frameon=False).get_texts():
                text.set_parse_math(False)
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
