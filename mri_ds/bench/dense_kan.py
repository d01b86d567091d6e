"""The KAN layer as most write it: all bases of every input, by the recursion over whole tensors, left to autograd.

Axes: B rows, I inputs, O outputs, K bases (grid size + degree).
In: (B, I).  Out: (B, O).
Source of the formulation: efficient-kan (github.com/Blealtan/efficient-kan, MIT), whose layer is a SiLU base and one matrix
product over the bases of all inputs. Written anew and made faster where that changes nothing: one grid row for all inputs,
reciprocals of the knot distances taken once instead of divisions of large tensors, no scaling of control points at every call.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from mri_ds.nn.spline import Grid


class DenseKANLayer(nn.Module):
    """Splines of `grid` and a SiLU base, from given control points (O, I, K), base weights (O, I) and bias (O,)."""

    knots: Tensor

    def __init__(self, grid: Grid, coefficients: Tensor, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.degree = grid.degree
        self.coefficients = nn.Parameter(coefficients.detach().clone().flatten(1))
        self.weight, self.bias = nn.Parameter(weight.detach().clone()), nn.Parameter(bias.detach().clone())
        knots = grid.knots()
        self.register_buffer("knots", knots.to(coefficients))
        for n in range(1, grid.degree + 1):
            self.register_buffer(f"per_support{n}", (1 / (knots[n:] - knots[:-n])).to(coefficients))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.silu(x), self.weight, self.bias) + F.linear(self.bases(x).flatten(1), self.coefficients)

    def bases(self, x: Tensor) -> Tensor:
        """x (B, I) -> (B, I, K)."""
        x, knots = x.unsqueeze(-1), self.knots
        bases = ((x >= knots[:-1]) & (x < knots[1:])).to(x.dtype)
        for n in range(1, self.degree + 1):
            per_support = self.get_buffer(f"per_support{n}")
            rising, falling = (x - knots[: -n - 1]) * per_support[:-1], (knots[n + 1 :] - x) * per_support[1:]
            bases = rising * bases[..., :-1] + falling * bases[..., 1:]
        return bases
