"""A table of numbers as a picture: how evenly work is spread.

In: values (R, C), rows as layers or tasks, columns as experts.  Out: (H, W, 3) uint8 with axes, as TensorBoard shows it.
"""

from collections.abc import Sequence

import numpy as np

DPI = 100
MOST = 3.0  # times the mean: whatever is beyond has the last colour


def draw_heat_map(values: np.ndarray, *, rows: Sequence[str], title: str, column: str = "expert") -> np.ndarray:
    """values (R, C) relative to each row's mean: 1 is white, less is blue, more is red. `rows` names the R rows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.figure import Figure

    assert values.ndim == 2 and len(values) == len(rows), (values.shape, rows)
    figure = Figure(figsize=(2.5 + 0.14 * values.shape[1], 1.2 + 0.3 * len(rows)), dpi=DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    shown = axes.imshow(values, cmap="RdBu_r", norm=TwoSlopeNorm(1.0, 0.0, MOST), aspect="auto", interpolation="nearest")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xlabel(column)
    axes.set_title(title)
    figure.colorbar(shown, ax=axes, label="x mean")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
