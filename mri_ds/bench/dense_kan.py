"""The KAN layer as most write it: all bases of every input, by the recursion over whole tensors, left to autograd.

Axes: B rows, I inputs, O outputs, K bases (grid size + degree).
In: (B, I).  Out: (B, O).
Source of the formulation: efficient-kan (github.com/Blealtan/efficient-kan, MIT): a SiLU base, and one matrix product over the
bases of all inputs with control points that a factor for each edge scales. Written anew from that description, with its knots for
each input and its divisions; a bias is added, as ours has one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mri_ds.nn.spline import Grid


class DenseKANLayer(nn.Module):
    """Splines of `grid` and a SiLU base, from given control points (O, I, K), base weights (O, I) and bias (O,)."""

    knots: Tensor

    def __init__(self, grid: Grid, coefficients: Tensor, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.degree = grid.degree
        self.coefficients = nn.Parameter(coefficients.detach().clone())
        self.scale = nn.Parameter(torch.ones_like(weight))
        self.weight, self.bias = nn.Parameter(weight.detach().clone()), nn.Parameter(bias.detach().clone())
        self.register_buffer("knots", grid.knots().to(coefficients).repeat(weight.shape[1], 1))  # (I, K + degree + 1)

    def forward(self, x: Tensor) -> Tensor:
        scaled = self.coefficients * self.scale.unsqueeze(-1)
        return F.linear(F.silu(x), self.weight, self.bias) + F.linear(self.bases(x).flatten(1), scaled.flatten(1))

    def bases(self, x: Tensor) -> Tensor:
        """x (B, I) -> (B, I, K)."""
        x, knots = x.unsqueeze(-1), self.knots
        bases = ((x >= knots[:, :-1]) & (x < knots[:, 1:])).to(x.dtype)
        for n in range(1, self.degree + 1):
            rising = (x - knots[:, : -n - 1]) / (knots[:, n:-1] - knots[:, : -n - 1])
            falling = (knots[:, n + 1 :] - x) / (knots[:, n + 1 :] - knots[:, 1:-n])
            bases = rising * bases[..., :-1] + falling * bases[..., 1:]
        return bases
