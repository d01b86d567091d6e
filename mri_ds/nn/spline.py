"""B-splines: all bases at a point, or only those that are not zero there, with their slopes.

Axes: I inputs, K bases (grid size + degree), S = degree + 1 of them not zero at any one point.
Source: Piegl & Tiller 1997, The NURBS Book, algorithm A2.2 for the recursion of Cox and de Boor and eq. 2.7 for its derivative.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


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
    level, shares = _cox_de_boor(left, right, torch.ones_like(x), is_even=False)
    values = torch.stack(level if not degree else [_blend(left, right, shares, r) for r in range(degree + 1)], dim=-1)
    places = span[..., None] - degree + torch.arange(degree + 1, device=x.device)
    return torch.zeros(*x.shape, num_bases, dtype=x.dtype, device=x.device).scatter(-1, places, values)


def local_splines(x: Tensor, grid: Grid, knots: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """x (..., I) -> span (..., I) int64; values and slopes d value / d x (..., S, I) of bases span, span + 1, ... span + S - 1.

    knots (I, size + 2 degree + 1): those of each input, where they are not the even ones of `grid`.
    Beyond the grid: values of the end point plus its slopes times the distance, so a curve goes on as a straight line.
    """
    degree, x = grid.degree, x.to(torch.promote_types(x.dtype, torch.float32))
    if knots is None:
        position = (x - grid.start) / grid.interval  # grid intervals from the start
        inside = position.clamp(0, grid.size)
        span = inside.long().clamp_(0, grid.size - 1)  # clamped after the conversion too: a NaN must not index out of the block
        beyond, t = position - inside, inside - span
        left, right = [t + j for j in range(degree)], [(j + 1) - t for j in range(degree)]
    else:
        knots = knots.to(x.dtype)
        inside = torch.clamp(x, knots[:, degree], knots[:, -degree - 1])
        span = _spans(inside, knots[:, degree + 1 : -degree - 1])
        beyond, place = x - inside, span + degree + torch.arange(len(knots), device=x.device) * knots.shape[1]
        left = [inside - knots.take(place - j) for j in range(degree)]
        right = [knots.take(place + 1 + j) - inside for j in range(degree)]
    lower, shares = _cox_de_boor(left, right, torch.ones_like(inside), is_even=knots is None)
    per_slope = lower if knots is None else [share * degree for share in shares]
    values, slopes = (x.new_empty(*x.shape[:-1], degree + 1, x.shape[-1]) for _ in range(2))
    for r in range(degree + 1):
        values[..., r, :] = _blend(left, right, shares, r)
        below = per_slope[r - 1] if r else 0.0
        slopes[..., r, :] = below - per_slope[r] if r < degree else below
    values += beyond.unsqueeze(-2) * slopes
    return span, values, slopes if knots is not None else slopes.div_(grid.interval)


def _cox_de_boor(left: list[Tensor], right: list[Tensor], one: Tensor, *, is_even: bool) -> tuple[list[Tensor], list[Tensor]]:
    """The bases one degree below the last, and the same, each divided by the length of its support.

    left[j]: x minus the j-th knot to its left (nearest first); right[j]: the j-th knot to its right, minus x. Knots one unit
    apart (`is_even`) need no sum to tell that length: it is the degree.
    """
    level, shares = [one], list[Tensor]()
    for n in range(1, len(left) + 1):
        if n > 1:
            level = [_blend(left[: n - 1], right[: n - 1], shares, r) for r in range(n)]
        shares = [v / n if is_even else v / (right[r] + left[n - 1 - r]) for r, v in enumerate(level)]
    return level, shares


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
