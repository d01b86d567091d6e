"""Finer knots where the data are, and the same curves on them.

Axes: I inputs, O outputs, K bases, P points.
The old knots stay and new ones are put between them, so the old curves lie in the new space and are found there up to rounding.
Where data lie beyond the grid, it grows over them; an old end then becomes an inner knot of multiplicity degree - 1, because
the curve is only once differentiable there: it goes on as a straight line.
Source: de Boor 1978, A Practical Guide to Splines, chapter IX, for knots, multiplicity and smoothness.
"""

import numpy as np
import torch
from torch import Tensor

from mri_ds.nn.spline import Grid, local_splines


def refined_knots(knots: Tensor, data: Tensor, *, size: int, degree: int) -> Tensor:
    """Knots (I, M) float64 and data (P, I) -> (I, size + 2 degree + 1), at whose ends degree + 1 knots coincide.

    Between two splits the interval that holds the most data is halved. Data that are not finite do not count. Raises ValueError
    where no data are left, and where `size` has no room for the knots that are needed.
    """
    rows = [_refine_one(k, column, size, degree) for k, column in zip(knots.cpu().numpy(), data.double().cpu().numpy().T)]
    return torch.from_numpy(np.stack(rows)).to(knots.device)


def _refine_one(knots: np.ndarray, data: np.ndarray, size: int, degree: int) -> np.ndarray:
    data = data[np.isfinite(data)]
    if not len(data):
        raise ValueError("a grid is refined from data, and an input has not a single finite value")
    first, *inner, last = knots[degree : len(knots) - degree].tolist()
    width, corner = (last - first) / (len(inner) + 1), max(1, degree - 1)
    if data.min() < first:
        inner, first = [first] * corner + inner, min(float(data.min()), first - width)
    if data.max() > last:
        inner, last = [*inner, *[last] * corner], max(float(data.max()), last + width)
    if size < len(inner) + 1:
        raise ValueError(f"grid_size {size} has no room for the curves as they are over these data: it takes {len(inner) + 1}")
    edges = np.unique([first, *inner, last])
    for _ in range(size - 1 - len(inner)):
        counts = np.histogram(data, edges)[0]
        fullest = np.lexsort((np.diff(edges), counts))[-1]  # of equally full ones the widest
        middle = float(edges[fullest : fullest + 2].mean())
        inner, edges = [*inner, middle], np.insert(edges, fullest + 1, middle)
    return np.array([first] * (degree + 1) + sorted(inner) + [last] * (degree + 1))


def refit(coefficients: Tensor, old: Grid, old_knots: Tensor | None, new: Grid, knots: Tensor) -> Tensor:
    """Control points (O, I, K) of curves on the `old` grid -> (O, I, K') of the same curves on `knots` (I, M), float64.

    Least squares over degree + 1 points in every new interval, as many as a polynomial of that degree has coefficients: where the
    old curve is in the new space, this is that curve.
    """
    degree = new.degree
    starts, ends = knots[:, degree : -degree - 1], knots[:, degree + 1 : -degree]
    share = (torch.arange(degree + 1, dtype=torch.float64, device=knots.device) + 0.5) / (degree + 1)
    points = (starts[..., None] + (ends - starts)[..., None] * share).flatten(1).T  # (P, I)
    wanted = basis_matrix(points, old, old_knots).transpose(0, 1) @ coefficients.detach().double().permute(1, 2, 0)
    given = basis_matrix(points, new, knots).transpose(0, 1)  # (I, P, K')
    return torch.linalg.lstsq(given, wanted).solution.permute(2, 0, 1)


def basis_matrix(x: Tensor, grid: Grid, knots: Tensor | None) -> Tensor:
    """x (P, I) -> values of all bases (P, I, K)."""
    span, values, _ = local_splines(x[None], grid, knots)
    places = span[0, ..., None] + torch.arange(grid.degree + 1, device=x.device)
    return values.new_zeros(*x.shape, grid.num_bases).scatter_(-1, places, values[0].permute(1, 2, 0))
