"""Smooth random fields: uniform cubic B-splines over few control points.

Axes: N fields, k control points per axis (may differ by axis), D H W voxels.
In: control points (N, k, k, k) float64.  Out: fields (N, D, H, W) float32.
Source: Rueckert et al. 1999 (free-form deformations), eq. 3.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def smooth_field(control: np.ndarray, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Cubic B-spline (N, k, k, k) -> (N, *shape): k - 3 cells from the first voxel to the last; k >= 4 may differ by axis.

    Each value is a weighted mean of 4 x 4 x 4 control points (weights positive, summing to one): it never exceeds them.
    """
    assert control.dtype == np.float64  # so that the order in which threads add up is lost when rounding to float32
    along_d, along_h, along_w = (spline_weights(n, cells=k - 3) for n, k in zip(shape, control.shape[1:]))
    planes = along_h @ (along_d @ torch.from_numpy(control).flatten(2)).unflatten(2, control.shape[2:])  # (N, D, H, k)
    # the last axis holds most of the work: float32, a sum of k terms per voxel
    return planes.float().to(device) @ along_w.T.float().to(device)


@lru_cache(maxsize=64)
def spline_weights(length: int, *, cells: int) -> Tensor:
    """How much each of cells + 3 control points counts at each of `length` voxels, (length, cells + 3) float64; rows sum to 1."""
    place = torch.linspace(0, cells, length, dtype=torch.float64)
    cell = place.floor().clamp(max=cells - 1)
    t = place - cell
    basis = torch.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], dim=1) / 6
    return torch.zeros(length, cells + 3, dtype=torch.float64).scatter_(1, cell.long()[:, None] + torch.arange(4), basis)
