"""Kolmogorov-Arnold layer: every edge from an input to an output carries its own learned curve, a spline plus a smooth base.

Axes: B rows (any leading axes, flattened), I inputs, O outputs, K basis functions (grid_size + degree), S = degree + 1 of them
not zero at any one point.
In: (..., I).  Out: (..., O), y_o = sum_i [ sum_k c_oik B_k(x_i) + w_oi b_i(x_i) ] + bias_o.
Only the S non-zero bases of an input are computed; they are laid into a small dense block, which one matrix product consumes, and
the blocks are made again in the backward pass, so that memory does not grow with rows * I * K.
Source: Liu et al. 2024 (KAN); Piegl & Tiller 1997, algorithm A2.2 for the recursion and eq. 2.7 for its derivative.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CPU_BLOCK, GPU_BLOCK = 2**20, 2**27  # entries of the dense block: on CPU it must stay in the cache (4 times faster)


class OptimizedKANLayer(nn.Module):
    """Splines on a uniform grid over `grid_range`, beside a learned mixture of ReLU, tanh, sigmoid and SiLU with a linear weight.

    grid_size: intervals of the grid. degree: of the splines, at least 1 (3 is cubic). grid_range: where the curves are free.
    An input outside the grid is neither clipped nor lost: each spline goes on as the straight line that it leaves the grid with.
    Knots are computed from these numbers in float32 (float64 for float64 inputs) whatever the weights were cast to.

    >>> OptimizedKANLayer(8, 3)(torch.randn(2, 5, 8)).shape
    torch.Size([2, 5, 3])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        grid_size: int = 8,
        degree: int = 3,
        grid_range: tuple[float, float] = (-2.0, 2.0),
    ) -> None:
        super().__init__()
        if grid_size < 1 or degree < 1 or not grid_range[0] < grid_range[1]:
            raise ValueError(
                f"splines need grid_size >= 1, degree >= 1 and an increasing grid_range, got {grid_size}, {degree}, {grid_range}"
            )
        self.grid_size, self.degree = grid_size, degree
        self.start, self.interval = float(grid_range[0]), (grid_range[1] - grid_range[0]) / grid_size
        self.coefficients = nn.Parameter(torch.randn(out_features, in_features, grid_size + degree) * 0.1 * in_features**-0.5)
        self.mixture = nn.Parameter(torch.zeros(in_features, 4))  # logits: an even mixture at the start
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        coefficients = self.coefficients.to(x.dtype).flatten(1)
        curves = _SplineSum.apply(rows, coefficients, self.start, self.interval, self.grid_size, self.degree)
        return (curves + self.linear(self._base(rows))).reshape(*x.shape[:-1], -1)

    def _base(self, x: Tensor) -> Tensor:
        relu, tanh, sigmoid, silu = self.mixture.softmax(-1).to(x.dtype).unbind(-1)
        gate = torch.sigmoid(x)
        return relu * torch.relu(x) + tanh * torch.tanh(x) + (sigmoid + silu * x) * gate


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
    left = [x - knots[span + 1 - j] for j in range(1, degree + 1)]
    right = [knots[span + j] - x for j in range(1, degree + 1)]
    values = torch.stack(cox_de_boor(left, right, torch.ones_like(x))[-1], dim=-1)
    places = span[..., None] - degree + torch.arange(degree + 1, device=x.device)
    return torch.zeros(*x.shape, num_bases, dtype=x.dtype, device=x.device).scatter(-1, places, values)


def cox_de_boor(left: list[Tensor], right: list[Tensor], one: Tensor) -> list[list[Tensor]]:
    """The non-zero bases of every degree 0, 1, ... len(left): level d is a list of d + 1 tensors like x.

    left[j]: x minus the j-th knot to its left (nearest first); right[j]: the j-th knot to its right, minus x.
    """
    levels = [[one]]
    for d in range(len(left)):
        level, carry = [], torch.zeros_like(one)
        for r, lower in enumerate(levels[-1]):
            share = lower / (right[r] + left[d - r])
            level.append(torch.addcmul(carry, right[r], share))
            carry = left[d - r] * share
        levels.append([*level, carry])
    return levels


def local_splines(x: Tensor, start: float, interval: float, grid_size: int, degree: int) -> tuple[Tensor, Tensor, Tensor]:
    """x (B, I) -> places (B, I, S) int64, values and slopes d value / d x (B, I, S) of the bases not zero at x, uniform knots.

    Beyond the grid: values of the end point plus its slopes times the distance, so a curve goes on as a straight line.
    """
    position = (x.to(torch.promote_types(x.dtype, torch.float32)) - start) / interval  # grid intervals from the start
    inside = position.clamp(0, grid_size)
    span = inside.long().clamp_(0, grid_size - 1)  # clamped after the conversion too: a NaN must not index out of the block
    t = inside - span
    levels = cox_de_boor([t + j for j in range(degree)], [(j + 1) - t for j in range(degree)], torch.ones_like(t))
    below = levels[-2]  # derivative of B_k: difference of neighbours one degree down, per unit knot
    slopes = torch.stack([-below[0], *(below[j] - below[j + 1] for j in range(degree - 1)), below[-1]], dim=-1)
    values = torch.stack(levels[-1], dim=-1)
    values += (position - inside)[..., None] * slopes
    places = span[..., None] + torch.arange(degree + 1, device=x.device)
    return places, values, slopes / interval


class _SplineSum(torch.autograd.Function):
    """x (B, I), coefficients (O, I * K) -> sums of curves (B, O), one block of rows at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, coefficients: Tensor, start: float, interval: float, grid_size: int, degree: int) -> Tensor:
        ctx.save_for_backward(x, coefficients)
        ctx.grid = (start, interval, grid_size, degree)
        out = x.new_empty(x.shape[0], coefficients.shape[0])
        for rows in _blocks(x, grid_size + degree):
            places, values, _ = local_splines(x[rows], *ctx.grid)
            out[rows] = _dense(places, values, grid_size + degree, x.dtype) @ coefficients.T
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, coefficients = ctx.saved_tensors
        num_bases = ctx.grid[2] + ctx.grid[3]
        precise = torch.promote_types(x.dtype, torch.float32)
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad_coefficients = torch.zeros_like(coefficients, dtype=precise) if ctx.needs_input_grad[1] else None
        for rows in _blocks(x, num_bases):
            places, values, slopes = local_splines(x[rows], *ctx.grid)
            if grad_coefficients is not None:
                grad_coefficients += grad[rows].T @ _dense(places, values, num_bases, x.dtype)
            if grad_x is not None:
                grad_bases = (grad[rows] @ coefficients).unflatten(-1, (-1, num_bases))
                grad_x[rows] = (grad_bases.gather(-1, places) * slopes).sum(-1)
        return grad_x, None if grad_coefficients is None else grad_coefficients.to(coefficients.dtype), None, None, None, None


def _blocks(x: Tensor, num_bases: int) -> list[slice]:
    size = max(1, (CPU_BLOCK if x.device.type == "cpu" else GPU_BLOCK) // (x.shape[1] * num_bases))
    return [slice(i, i + size) for i in range(0, x.shape[0], size)]


def _dense(places: Tensor, values: Tensor, num_bases: int, dtype: torch.dtype) -> Tensor:
    """The block (B, I * K) that is zero but for `values` at `places`."""
    block = torch.zeros(*places.shape[:2], num_bases, dtype=dtype, device=places.device)
    return block.scatter_(-1, places, values.to(dtype)).flatten(1)
