"""Which voxel of a label map stands where, after rotation, scaling, shear, flip and elastic deformation.

Axes: D H W voxels of the label map, P Q R voxels of the result, k control points along an axis.
The place that a voxel shows is affine plus a cubic B-spline in P, Q and R, and both are separable: all but the last axis is
worked out on small arrays, and one product of matrices gives the places of all voxels.
Source: Rueckert et al. 1999 (free-form deformations), eq. 3; Choi and Lee 2000 for the bound that keeps space from folding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from mri_ds.config import Triple
from mri_ds.data.synthesis.label_map import LabelMap

NO_FOLD = 0.4  # of the distance between control points: the largest displacement that surely keeps neighbours in order


@dataclass(frozen=True)
class View:
    """What of a label map the result shows. Lengths in mm; arrays are float64."""

    shape: Triple
    spacing_mm: tuple[float, float, float]
    centre_mm: np.ndarray  # (3,) what the middle of the result shows, from the outer corner of the label map
    matrix: np.ndarray  # (3, 3) place in the result, from its middle -> place in the label map, from centre_mm
    control_mm: np.ndarray | None = None  # (3, k, k, k) displacements of the control points


def draw_affine(rng: np.random.Generator, *, rotate_deg: float, scale: float, shear: float) -> np.ndarray:
    """Rotation by up to `rotate_deg` about each axis, each axis scaled by 1 - scale to 1 + scale and sheared; (3, 3)."""
    angles, factors, shears = (rng.uniform(-most, most, size=n) for most, n in ((rotate_deg, 3), (scale, 3), (shear, 6)))
    bend = np.eye(3)
    bend[~np.eye(3, dtype=bool)] = shears
    return Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ bend @ np.diag(1 + factors)


def draw_control_points(
    rng: np.random.Generator, shape: Sequence[int], spacing_mm: Sequence[float], *, most_mm: float, grid_mm: float
) -> np.ndarray:
    """Displacements of control points at least `grid_mm` apart, (3, k, k, k), each within an amplitude drawn up to `most_mm`."""
    assert most_mm <= NO_FOLD * grid_mm
    cells = [max(1, int(n * s / grid_mm)) for n, s in zip(shape, spacing_mm)]
    amplitude = most_mm * rng.random()
    return rng.uniform(-amplitude, amplitude, size=(3, *(c + 3 for c in cells)))


def look_up(label_map: LabelMap, view: View, shape: Sequence[int]) -> Tensor:
    """The map's rows at each voxel of a grid of `shape` over the view's extent, (P, Q, R); background outside the map."""
    size = label_map.rows.shape
    flat = None
    for axis, extent in enumerate(size):
        place = _places(label_map, view, shape, axis).clamp_(0, extent - 0.5).int()
        flat = place if flat is None else flat.mul_(extent).add_(place)
    assert flat is not None
    return label_map.rows.flatten().index_select(0, flat.flatten()).view(tuple(shape))


def _places(label_map: LabelMap, view: View, shape: Sequence[int], axis: int) -> Tensor:
    """Where each voxel's centre lies along one axis of the padded map, (P, Q, R) float32: v to v + 1 is voxel v."""
    p, q, r = (((np.arange(n) + 0.5) / n - 0.5) * full * s for n, full, s in zip(shape, view.shape, view.spacing_mm, strict=True))
    row = view.matrix[axis]
    first = view.centre_mm[axis] + row[0] * p[:, None] + row[1] * q
    along, over = [first[..., None], np.full((len(p), len(q), 1), row[2])], [np.ones((1, len(r))), r[None]]
    if view.control_mm is not None:
        control = view.control_mm[axis]
        weights = [spline_weights(n, k - 3) for n, k in zip(shape, control.shape)]
        along.append(_spread(control[None], weights)[0])
        over.append(weights[2].T)
    left = np.concatenate(along, axis=-1) / label_map.spacing_mm[axis]
    left[..., 0] += 1  # the border
    return torch.from_numpy(left).float() @ torch.from_numpy(np.concatenate(over)).float()


def smooth_field(control: np.ndarray, shape: Sequence[int]) -> Tensor:
    """Cubic B-spline over control points (N, k, k, k) -> (N, *shape) float32; k - 3 cells fill the field of view."""
    weights = [spline_weights(n, k - 3) for n, k in zip(shape, control.shape[1:])]
    return torch.from_numpy(_spread(control, weights)).float() @ torch.from_numpy(weights[2].T).float()


def _spread(control: np.ndarray, weights: Sequence[np.ndarray]) -> np.ndarray:
    """Control points (N, k, k, k) read along the first two axes, (N, P, Q, k). By torch, whose threads `apply` holds to one."""
    p, q = (torch.from_numpy(w) for w in weights[:2])
    along_p = torch.einsum("pa,nabc->npbc", p, torch.from_numpy(control))
    return np.asarray(torch.einsum("qb,npbc->npqc", q, along_p))


def spline_weights(n: int, cells: int) -> np.ndarray:
    """How much each of cells + 3 control points counts at the centres of n voxels, (n, cells + 3) float64; rows sum to 1."""
    place = (np.arange(n) + 0.5) * cells / n
    cell = np.minimum(place.astype(int), cells - 1)
    t = place - cell
    basis = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1) / 6
    weights = np.zeros((n, cells + 3))
    np.put_along_axis(weights, cell[:, None] + np.arange(4), basis, axis=1)
    return weights
