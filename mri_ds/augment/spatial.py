"""Where voxels come from: crop, flip, rotation, scaling and elastic deformation of an image and its labels in one resampling.

Axes: C channel, K label maps, D H W voxels of the source, P Q R voxels of the window that is cut out.
In: image (C, D, H, W), labels (K, D, H, W), a window and a deformation in mm.  Out: (C, P, Q, R), (K, P, Q, R).
A window voxel at offset p (mm) from the window's centre shows the source at M p + u(p) from it: M in mm, so that anisotropic
voxels are rotated and not sheared, u a cubic B-spline over few control points. Images are read linearly, labels take the nearest
voxel; beyond the source an image continues with `fill` and a label with 0, background. Without M and u the window is a copy.
Source: Rueckert et al. 1999 (free-form deformations), eq. 3; Choi and Lee 2000 for the bound that keeps u from folding space.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Triple = tuple[int, int, int]
NO_FOLD = 0.4  # of the distance between control points: the largest displacement that surely keeps neighbours in order


def resample(
    image: Tensor,
    labels: Tensor,
    *,
    start: Sequence[int],
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    matrix: np.ndarray | None = None,
    control_mm: np.ndarray | None = None,
    fill: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The window of `shape` whose first voxel is source voxel `start` (which may lie outside), deformed about its centre.

    matrix (3, 3) or None for none; control_mm (3, k, k, k) displacements of the control points or None.
    """
    if matrix is None and control_mm is None:
        return crop(image, start, shape, fill), crop(labels, start, shape, 0)
    where = source_positions(start=start, shape=shape, spacing_mm=spacing_mm, matrix=matrix, control_mm=control_mm)
    box = [_reach(axis, size) for axis, size in zip(where, image.shape[1:])]
    grid = torch.stack([_unit(axis, lo, hi) for axis, (lo, hi) in zip(where, box)][::-1], dim=-1)[None].to(image.device)
    source = (slice(None), *(slice(lo, hi) for lo, hi in box))
    pixels = F.grid_sample((image[source] - fill)[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    if not len(labels):
        return pixels[0] + fill, crop(labels, start, shape, 0)
    nearest = F.grid_sample(labels[source].float()[None], grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return pixels[0] + fill, nearest[0].to(labels.dtype)


def crop(voxels: Tensor, start: Sequence[int], shape: Sequence[int], fill: float) -> Tensor:
    """(C, D, H, W) -> (C, *shape) from voxel `start` on, with `fill` where the window leaves the source.

    >>> crop(torch.arange(3.0).view(1, 3, 1, 1), (-1, 0, 0), (5, 1, 1), fill=9).flatten().tolist()
    [9.0, 0.0, 1.0, 2.0, 9.0]
    """
    window = voxels.new_full((voxels.shape[0], *shape), fill)
    here, there = [slice(None)], [slice(None)]
    for size, first, length in zip(voxels.shape[1:], start, shape):
        lo, hi = max(first, 0), max(min(first + length, size), max(first, 0))
        there.append(slice(lo, hi))
        here.append(slice(lo - first, hi - first))
    window[tuple(here)] = voxels[tuple(there)]
    return window


def source_positions(
    *,
    start: Sequence[int],
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    matrix: np.ndarray | None,
    control_mm: np.ndarray | None,
) -> Tensor:
    """Source voxel coordinates (3, P, Q, R) float32 that each window voxel shows; whole numbers are voxel centres."""
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    centre = np.asarray(start) + (np.asarray(shape) - 1) / 2
    per_voxel = (np.eye(3) if matrix is None else matrix) * spacing / spacing[:, None]
    p, q, r = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in shape)
    where = torch.stack(
        [
            (centre[i] + row[0] * p[:, None, None] + row[1] * q[:, None] + row[2] * r).float()
            for i, row in enumerate(per_voxel.tolist())
        ]
    )
    if control_mm is not None:
        where += smooth_field(control_mm / spacing[:, None, None, None], shape)
    return where


def smooth_field(control: np.ndarray, shape: Sequence[int]) -> Tensor:
    """Cubic B-spline (N, k, k, k) -> (N, *shape): k - 3 cells from the first voxel to the last; k >= 4 may differ by axis.

    Each value is a weighted mean of 4 x 4 x 4 control points (weights positive, summing to one): it never exceeds them.
    """
    assert control.dtype == np.float64  # so that the order in which threads add up is lost when rounding to float32
    field = torch.from_numpy(control)
    for axis, length in enumerate(shape, start=1):
        weights = spline_weights(length, cells=control.shape[axis] - 3)
        field = (field.movedim(axis, -1) @ weights.T).movedim(-1, axis)
    return field.float()


def spline_weights(length: int, *, cells: int) -> Tensor:
    """How much each of cells + 3 control points counts at each of `length` voxels, (length, cells + 3) float64; rows sum to 1."""
    place = torch.linspace(0, cells, length, dtype=torch.float64)
    cell = place.floor().clamp(max=cells - 1)
    t = place - cell
    basis = torch.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], dim=1) / 6
    return torch.zeros(length, cells + 3, dtype=torch.float64).scatter_(1, cell.long()[:, None] + torch.arange(4), basis)


def _reach(positions: Tensor, size: int) -> tuple[int, int]:
    """First and last + 1 source voxel of one axis that any position can touch: a small window of a large volume reads little."""
    lo = min(max(int(positions.min().floor()) - 1, 0), size - 1)
    return lo, max(min(int(positions.max().ceil()) + 2, size), lo + 1)


def _unit(positions: Tensor, lo: int, hi: int) -> Tensor:
    """Voxel coordinates -> grid_sample's -1..1 over source voxels lo..hi (align_corners=False)."""
    return (positions - lo + 0.5) * (2 / (hi - lo)) - 1


def draw_matrix(rng: np.random.Generator, *, rotate_deg: float, scale: float) -> np.ndarray:
    """Rotation by up to `rotate_deg` about each axis, times one zoom between 1 / (1 + scale) and 1 + scale; (3, 3)."""
    zoom = np.exp(rng.uniform(-1, 1) * np.log1p(scale))
    matrix = np.eye(3) * zoom
    for axis, angle in enumerate(np.deg2rad(rng.uniform(-rotate_deg, rotate_deg, size=3))):
        j, k = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[j, j], turn[j, k], turn[k, j], turn[k, k] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = turn @ matrix
    return matrix


def draw_control_points(
    rng: np.random.Generator, *, shape: Sequence[int], spacing_mm: Sequence[float], elastic_mm: float, grid_mm: float
) -> np.ndarray:
    """Displacements, each within +-elastic_mm, of control points about `grid_mm` apart; (3, k, k, k), k differing by axis.

    Raises ValueError for displacements that could fold space.
    """
    if elastic_mm > NO_FOLD * grid_mm:
        raise ValueError(f"elastic_mm {elastic_mm} could fold space: keep it under {NO_FOLD} x grid_mm ({grid_mm})")
    cells = [max(1, int(n * s / grid_mm)) for n, s in zip(shape, spacing_mm)]
    return rng.uniform(-elastic_mm, elastic_mm, size=(3, *(c + 3 for c in cells)))
