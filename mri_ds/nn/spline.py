"""B-splines: all bases at a point, or only those that are not zero there, with their slopes.

Axes: T layers, B rows, I inputs, K bases (grid size + degree), S = degree + 1 of them not zero at any one point.
Source: Piegl & Tiller 1997, The NURBS Book, algorithm A2.2 for the recursion of Cox and de Boor and eq. 2.7 for its derivative.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.polynomial import Polynomial
from torch import Tensor

from mri_ds.nn.products import products
from mri_ds.nn.tables import table
from mri_ds.nn.workspace import Workspace


@dataclass(frozen=True)
class Grid:
    """`size` even intervals of length `interval` from `start`, which splines of `degree` go over."""

    start: float
    interval: float
    size: int
    degree: int

    @property
    def num_bases(self) -> int:
        return self.size + self.degree

    def knots(self) -> Tensor:
        """(size + 2 degree + 1,) float64, `degree` of them before the grid and as many behind it."""
        steps = torch.arange(-self.degree, self.size + self.degree + 1, dtype=torch.float64)
        return self.start + self.interval * steps


def bspline_basis(x: Tensor, knots: Tensor, degree: int) -> Tensor:
    """Values of all B-splines at x (...) -> (..., len(knots) - degree - 1), for any non-decreasing knots.

    Between knots[degree] and knots[-degree - 1] they are scipy's `BSpline.design_matrix`; beyond, the end pieces are continued.

    >>> bspline_basis(torch.tensor([1.25]), torch.arange(4.0), degree=1)
    tensor([[0.7500, 0.2500]])
    """
    num_bases = len(knots) - degree - 1
    if degree < 0 or num_bases <= degree:
        raise ValueError(f"degree {degree} needs at least {2 * degree + 2} knots, got {len(knots)}")
    span = torch.searchsorted(knots, x.detach().contiguous(), right=True).sub_(1)
    last = int(torch.searchsorted(knots, knots[num_bases])) - 1  # the last interval that is not empty owns the end point
    span = span.clamp_(degree, max(last, degree))
    left = [x - knots[span - j] for j in range(degree)]
    right = [knots[span + 1 + j] - x for j in range(degree)]
    one = torch.ones_like(x)
    shares = _cox_de_boor(left, right, one)
    values = torch.stack([_blend(left, right, shares, r) for r in range(degree + 1)] if degree else [one], dim=-1)
    places = span[..., None] - degree + torch.arange(degree + 1, device=x.device)
    return torch.zeros(*x.shape, num_bases, dtype=x.dtype, device=x.device).scatter(-1, places, values)


def local_splines(
    x: Tensor, grid: Grid, knots: Tensor | None = None, work: Workspace | None = None, *, with_slopes: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """x (T, B, I) -> span (T, B, I) int64; values and slopes d value / d x (T, S, B, I) of bases span, ... span + S - 1.

    knots (I, size + 2 degree + 1): those of each input, where they are not the even ones of `grid`.
    Beyond the grid: values of the end point plus its slopes times the distance, so a curve goes on as a straight line.
    What is returned may lie in `work`; without `with_slopes` the slopes may be missing (T, 0, B, I).
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    work = Workspace() if work is None else work
    return _even_splines(x, grid, work, with_slopes) if knots is None else _uneven_splines(x, grid.degree, knots.to(x.dtype))


def _even_splines(x: Tensor, grid: Grid, work: Workspace, with_slopes: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Between any two even knots the bases are the same few polynomials, so one small product gives all of them and their slopes.

    Its terms: t^j of the place t in the interval, and t^(j-1) (t + j beyond), the tangent to it where x is `beyond` the grid.
    """
    tasks, rows, inputs = x.shape
    terms = work.tensor("terms", (tasks, 2 * grid.degree, rows, inputs), x)
    one, position, *tangents = terms[:, : grid.degree + 1].unbind(1)
    powers = [*terms[:, grid.degree + 1 :].unbind(1)] or [torch.empty_like(x)]  # of t: the first, the second, ...
    one.fill_(1)
    torch.sub(x, grid.start, out=position).div_(grid.interval)  # in grid intervals from the start
    t = torch.clamp(position, 0, grid.size, out=powers[0])
    span = torch.floor(t, out=work.tensor("span", x.shape, x))
    torch.fmin(span, span.new_tensor(grid.size - 1), out=span)  # that of a NaN as well: it must not index out of the block
    position -= span
    t -= span
    for lower, higher in itertools.pairwise(powers):
        torch.mul(lower, t, out=higher)
    for j, (tangent, power) in enumerate(zip(tangents, powers), start=2):
        torch.mul(position, j, out=tangent).sub_((j - 1) * t).mul_(power)  # `alpha` may round the last few in another way
    pieces = x.new_tensor(_pieces(grid.degree))
    pieces[grid.degree + 1 :] /= grid.interval
    pieces = pieces if with_slopes else pieces[: grid.degree + 1]
    both = work.tensor("both", (tasks, len(pieces), rows * inputs), x)
    products(pieces.expand(tasks, -1, -1), terms.flatten(2), out=both)
    both = both.view(tasks, -1, rows, inputs)
    values, slopes = both[:, : grid.degree + 1], both[:, grid.degree + 1 :]
    return work.tensor("whole span", x.shape, x, dtype=torch.int64).copy_(span), values, slopes


@table
def _pieces(degree: int) -> list[list[float]]:
    """The recursion of Cox and de Boor on polynomials in t, for knots one unit apart.

    (2 S, 2 degree): rows are the S bases that are not zero between two knots, then their slopes; columns are the coefficients of
    1, t, ... t^degree (of the bases) and again of t, ... t^(degree - 1) (of the slopes).
    """
    zero, level, below = Polynomial([0.0]), [Polynomial([1.0])], []
    for n in range(1, degree + 1):
        below = [zero, *level, zero]
        level = [(Polynomial([n - r, 1]) * below[r] + Polynomial([r + 1, -1]) * below[r + 1]) / n for r in range(n + 1)]
    table = np.zeros((2 * degree + 2, 2 * degree))
    for r, piece in enumerate(level):
        slope = (below[r] - below[r + 1]).coef  # difference of neighbours one degree down
        table[r, : len(piece.coef)] = piece.coef
        table[degree + 1 + r, [0, *range(degree + 1, degree + len(slope))]] = slope
    return table.tolist()  # type: ignore[no-any-return]


def _uneven_splines(x: Tensor, degree: int, knots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same by the recursion at every point, from the knots around it."""
    inside = torch.clamp(x, knots[:, degree], knots[:, -degree - 1])
    span = _spans(inside, knots[:, degree + 1 : -degree - 1])
    place = span + degree + torch.arange(len(knots), device=x.device) * knots.shape[1]
    left = [inside - knots.take(place - j) for j in range(degree)]
    right = [knots.take(place + 1 + j) - inside for j in range(degree)]
    shares = _cox_de_boor(left, right, torch.ones_like(inside))
    none = torch.zeros_like(inside)
    slopes = torch.stack([degree * (a - b) for a, b in zip([none, *shares], [*shares, none])], dim=1)
    values = torch.stack([_blend(left, right, shares, r) for r in range(degree + 1)], dim=1)
    return span, values + (x - inside).unsqueeze(1) * slopes, slopes


def _cox_de_boor(left: list[Tensor], right: list[Tensor], one: Tensor) -> list[Tensor]:
    """The bases one degree below the last, each divided by the length of its support.

    left[j]: x minus the j-th knot to its left (nearest first); right[j]: the j-th knot to its right, minus x.
    """
    level, shares = [one], list[Tensor]()
    for n in range(1, len(left) + 1):
        if n > 1:
            level = [_blend(left[: n - 1], right[: n - 1], shares, r) for r in range(n)]
        shares = [v / (right[r] + left[n - 1 - r]) for r, v in enumerate(level)]
    return shares


def _blend(left: list[Tensor], right: list[Tensor], shares: list[Tensor], r: int) -> Tensor:
    """Basis r of the next degree from the shares of this one."""
    n = len(left)
    if r == 0:
        return right[0] * shares[0]
    if r == n:
        return left[0] * shares[n - 1]
    return left[n - r] * shares[r - 1] + right[r] * shares[r]  # addcmul may round the last few of a row in another way


def _spans(x: Tensor, inner: Tensor) -> Tensor:
    """How many of the knots between the ends, inner (I, G - 1), lie at or before x (..., I)."""
    columns = x.detach().flatten(0, -2).T.contiguous() if x.ndim > 1 else x.detach()[:, None]
    return torch.searchsorted(inner.contiguous(), columns, right=True).T.reshape(x.shape)
