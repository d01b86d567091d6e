"""Kolmogorov-Arnold layer: every edge from an input to an output carries its own learned curve, a spline plus a smooth base.

Axes: B rows (any leading axes, flattened), I inputs, O outputs, K basis functions (grid_size + degree), S = degree + 1 of them
not zero at any one point, T layers of one shape evaluated at once.
In: (..., I).  Out: (..., O), y_o = sum_i [ sum_k c_oik B_k(x_i) + w_oi b_i(x_i) ] + bias_o.
Only the S non-zero bases of an input are computed; they are laid into a small dense block, which one matrix product consumes, and
the blocks are made again in the backward pass, so that memory does not grow with rows * I * K.
Source: Liu et al. 2024 (KAN).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mri_ds.nn.membership import exchange
from mri_ds.nn.products import add_products, products, stacked
from mri_ds.nn.spline import Grid, local_splines
from mri_ds.nn.spline_refinement import basis_matrix, refined_knots, refit
from mri_ds.nn.workspace import Workspace

TEMPORARIES = 16  # of the mixture's, which share the cache
CPU_BLOCK, GPU_BLOCK = 2**20, 2**27  # entries of the dense block: on CPU it must stay in the cache (4 times faster)


class OptimizedKANLayer(nn.Module):
    """Splines on a uniform grid over `grid_range`, beside a learned mixture of ReLU, tanh, sigmoid and SiLU with a linear weight.

    grid_size: intervals of the grid. degree: of the splines, at least 1 (3 is cubic). grid_range: where the curves are free.
    An input outside the grid is neither clipped nor lost: each spline goes on as the straight line that it leaves the grid with.
    Knots are computed from these numbers in float32 (float64 for float64 inputs) whatever the weights were cast to.

    >>> OptimizedKANLayer(8, 3)(torch.randn(2, 5, 8)).shape
    torch.Size([2, 5, 3])
    """

    knots: Tensor | None

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
        self.grid = Grid(float(grid_range[0]), (grid_range[1] - grid_range[0]) / grid_size, grid_size, degree)
        self.coefficients = nn.Parameter(torch.randn(out_features, in_features, grid_size + degree) * 0.1 * in_features**-0.5)
        self.mixture = nn.Parameter(torch.zeros(in_features, 4))  # logits: an even mixture at the start
        self.linear = nn.Linear(in_features, out_features)
        self.register_buffer("knots", None)  # (I, grid_size + 2 degree + 1) float64 once the grid was refined

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(1, -1, x.shape[-1])
        return evaluate([self], rows).reshape(*x.shape[:-1], -1)

    @torch.no_grad()
    def refine_grid(self, data: Tensor, *, grid_size: int, optimizer: torch.optim.Optimizer | None = None) -> None:
        """A grid of `grid_size` intervals that is finer where data (..., I) are, and covers them all; the layer's function stays.

        The control points become another parameter (O, I, grid_size + degree), which takes the old one's place in `optimizer`.
        Raises ValueError for data without finite values, and for a grid_size below the number of intervals that is needed:
        the present one, and up to 2 (degree - 1) more where data lie beyond the grid.
        """
        old_knots = self.grid.knots().to(data.device).expand(data.shape[-1], -1) if self.knots is None else self.knots
        knots = refined_knots(old_knots, data.reshape(-1, data.shape[-1]), size=grid_size, degree=self.grid.degree)
        finer = Grid(self.grid.start, self.grid.interval, grid_size, self.grid.degree)
        control_points = refit(self.coefficients, self.grid, self.knots, finer, knots)
        leaving = self.coefficients
        self.coefficients = nn.Parameter(control_points.to(leaving).contiguous(), requires_grad=leaving.requires_grad)
        self.grid, self.knots = finer, knots
        if optimizer is not None:
            exchange(optimizer, leaving=[leaving], entering=[self.coefficients])

    @torch.no_grad()
    def curves(self, num_points: int = 200, *, margin: float = 0.25) -> tuple[Tensor, Tensor]:
        """What the edges have learned, for plots: x (P, I) over the grid and `margin` of its length on either side, y (O, I, P).

        A layer's output is the sum of its curves over I, plus the bias.
        """
        knots = self.grid.knots().expand(self.mixture.shape[0], -1) if self.knots is None else self.knots
        first, last = (knots[:, i].to(self.coefficients) for i in (self.grid.degree, -self.grid.degree - 1))
        x = first + (last - first) * torch.linspace(-margin, 1 + margin, num_points).to(first)[:, None]
        bases = basis_matrix(x, self.grid, self.knots)
        base = _Mixture.apply(x[None], self.mixture.softmax(-1).T[None])[0]
        return x, torch.einsum("pik,oik->oip", bases, self.coefficients) + torch.einsum("pi,oi->oip", base, self.linear.weight)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        knots = self.knots
        super()._apply(fn, recurse)
        if knots is not None and self.knots is not None:
            self.knots = knots.to(self.knots.device)  # moved with the weights, never rounded with them
        return self

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """A layer takes over the grid of the one that was saved."""
        knots = state_dict.get(prefix + "knots")
        if knots is not None:
            size = knots.shape[1] - 2 * self.grid.degree - 1
            self.grid = Grid(self.grid.start, self.grid.interval, size, self.grid.degree)
            self.knots = knots.to(self.coefficients.device, copy=True)
            shape = (*self.coefficients.shape[:2], self.grid.num_bases)
            if self.coefficients.shape != shape:
                self.coefficients = nn.Parameter(self.coefficients.new_empty(shape), self.coefficients.requires_grad)
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[misc]


def evaluate(layers: Sequence[OptimizedKANLayer], x: Tensor) -> Tensor:
    """`layers` of one signature, each on rows of its own: x (T, B, I) -> (T, B, O), bit for bit as one after another."""
    first = layers[0]
    coefficients = stacked([layer.coefficients for layer in layers]).to(x.dtype).flatten(2)
    mixture = stacked([layer.mixture.softmax(-1).T for layer in layers]).to(x.dtype)
    weight = stacked([layer.linear.weight for layer in layers]).to(x.dtype)
    bias = stacked([layer.linear.bias for layer in layers]).to(x.dtype)
    curves = _SplineSum.apply(x, coefficients, first.grid, first.knots)
    return curves + (products(_Mixture.apply(x, mixture), weight.mT) + bias[:, None])


def signature(layer: OptimizedKANLayer) -> tuple[object, ...]:
    """Layers with the same one can be evaluated at once; a refined layer has a grid of its own."""
    return (tuple(layer.linear.weight.shape), layer.linear.weight.dtype, layer.grid, None if layer.knots is None else id(layer))


class _SplineSum(torch.autograd.Function):
    """x (T, B, I), coefficients (T, O, I * K) -> sums of curves (T, B, O), one block of rows at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, coefficients: Tensor, grid: Grid, knots: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, coefficients)
        ctx.grid, ctx.knots = grid, knots
        out = x.new_empty(*x.shape[:2], coefficients.shape[1])
        work = Workspace()
        for rows in _blocks(x, grid.num_bases):
            span, values, _ = local_splines(x[:, rows], grid, knots, work, with_slopes=False)
            block = _dense(_first_places(span, grid), values, grid, x.dtype, work)
            products(block, coefficients.mT, out=out[:, rows])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, coefficients = ctx.saved_tensors
        grid = ctx.grid
        precise = torch.promote_types(x.dtype, torch.float32)
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        totals = [torch.zeros_like(one, dtype=precise) for one in coefficients] if ctx.needs_input_grad[1] else []
        work = Workspace()
        for rows in _blocks(x, grid.num_bases):
            span, values, slopes = local_splines(x[:, rows], grid, ctx.knots, work)
            first = _first_places(span, grid)
            block = _dense(first, values, grid, x.dtype, work)
            if totals:
                add_products(totals, grad[:, rows].mT, block)
            if grad_x is not None:
                products(grad[:, rows], coefficients, out=block)
                for r, slope in enumerate(slopes.unbind(1)):
                    slope *= torch.gather(block[..., r:], -1, first, out=work.tensor("gathered", first.shape, block))
                grad_x[:, rows] = slopes.sum(1)
        return grad_x, stacked(totals).to(coefficients.dtype) if totals else None, None, None


def _blocks(x: Tensor, num_bases: int) -> list[slice]:
    """Of rows (T, B, I); as many for one layer as for several, whose sums then have the same order."""
    size = max(1, (CPU_BLOCK if x.device.type == "cpu" else GPU_BLOCK) // (x.shape[2] * num_bases))
    return [slice(i, i + size) for i in range(0, x.shape[1], size)]


def _first_places(span: Tensor, grid: Grid) -> Tensor:
    """span (..., I), taken over -> where the first of the S bases of each input lies in a row of the block; the others follow."""
    return span.add_(torch.arange(0, span.shape[-1] * grid.num_bases, grid.num_bases, device=span.device))


def _dense(first: Tensor, values: Tensor, grid: Grid, dtype: torch.dtype, work: Workspace) -> Tensor:
    """The block (T, B, I * K) that is zero but for `values` (T, S, B, I) from `first` on."""
    shape = (*first.shape[:-1], first.shape[-1] * grid.num_bases)
    block = work.tensor("block", shape, values, dtype=dtype).zero_()
    for r, value in enumerate(values.to(dtype).unbind(1)):
        block[..., r:].scatter_(-1, first, value)
    return block


class _Mixture(torch.autograd.Function):
    """x (T, B, I), shares (T, 4, I) of ReLU, tanh, sigmoid and SiLU -> (T, B, I). Keeps x alone for the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shares: Tensor) -> Tensor:
        ctx.save_for_backward(x, shares)
        relu, tanh, sigmoid, silu = shares.unsqueeze(2).unbind(1)
        out = torch.empty_like(x)
        for rows in _blocks(x, TEMPORARIES):
            part = x[:, rows]
            bend, gate = _tanh_and_sigmoid(part)
            out[:, rows] = relu * part.relu() + tanh * bend + (sigmoid + silu * part).mul_(gate)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor]:
        x, shares = ctx.saved_tensors
        relu, tanh, sigmoid, silu = shares.unsqueeze(2).unbind(1)
        grad_x, grad_shares = torch.empty_like(x), torch.zeros_like(shares, dtype=torch.promote_types(x.dtype, torch.float32))
        for rows in _blocks(x, TEMPORARIES):
            part, g = x[:, rows], grad[:, rows]
            bend, gate = _tanh_and_sigmoid(part)
            curves = (part.relu(), bend, gate, gate * part)
            grad_shares += torch.stack([(g * curve).sum(1, dtype=grad_shares.dtype) for curve in curves], dim=1)
            slope = relu * (part > 0) + tanh * (1 - bend * bend) + gate * (silu + (sigmoid + silu * part) * (1 - gate))
            grad_x[:, rows] = g * slope
        return grad_x, grad_shares.to(shares.dtype)


def _tanh_and_sigmoid(x: Tensor) -> tuple[Tensor, Tensor]:
    """From one tanh, whose every element is rounded alike; torch.sigmoid's last few of a row may differ by where it ends."""
    half = torch.tanh(0.5 * x)
    return 2 * half / (1 + half * half), half.mul(0.5).add_(0.5)
