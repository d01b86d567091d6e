"""Distance between the surfaces of two masks, in millimetres, and the share of them that is close enough.

Axes: D H W voxels, spacing_mm (3,) their edge lengths along those axes.
In: truth and prediction (D, H, W) boolean masks on one grid.  Out: millimetres, or shares 0..1.

Definitions, because there are several: the surface is the set of mask voxels with a face neighbour outside the mask, where
everything beyond the field of view is outside; a distance runs between voxel centres. From the two arrays of distances:
hausdorff_mm the largest; hd95_mm the larger of the two directed 95th percentiles (linear interpolation), as MONAI's
`compute_hausdorff_distance`; hd95_pooled_mm the percentile of both together, as medpy's `hd95`; assd_mm the mean of both
together, as both; surface_dice the share of both that is at most tolerance_mm, as MONAI's `compute_surface_dice`.
surface_dice_area is DeepMind's surface-distance: the same share of the area, on the surface that marching cubes would draw
(metrics/surfels.py), whose elements lie at the corners of voxels.
Empty masks: both -> nan, to be counted by the caller; exactly one -> distances are the diagonal of the field of view, the largest
that the volume can hold, and shares 0: a missed structure costs the most instead of vanishing from the mean.
Source: Huttenlocher et al. 1993; Nikolov et al. 2021 (surface Dice); Maier-Hein et al. 2024, Metrics Reloaded.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage, spatial

from mri_ds.metrics.surfels import areas_mm2, surfels

Spacing = Sequence[float] | np.ndarray  # (3,), mm, in the order of the voxel axes
DISTANCES = ("hausdorff_mm", "hd95_mm", "hd95_pooled_mm", "assd_mm")
SHARES = ("surface_dice", "surface_dice_area")
LEAF = 32  # points in a leaf of the search tree: built once, asked once
VOXELS_PER_POINT = 40  # a tree answers for one point in the time that a distance transform takes for so many voxels


def surface_figures(
    truth: np.ndarray, prediction: np.ndarray, spacing_mm: Spacing, *, tolerance_mm: float = 1.0, with_area: bool = True
) -> dict[str, float]:
    """Every figure of DISTANCES and SHARES by name; distances are found once for all. Without area: no surface_dice_area.

    >>> masks = np.zeros((2, 9, 9, 9), dtype=bool)
    >>> masks[0, 1, 4, 4] = masks[1, 3, 4, 4] = True
    >>> surface_figures(masks[0], masks[1], (1.5, 1.0, 1.0), with_area=False)  # doctest: +NORMALIZE_WHITESPACE
    {'hausdorff_mm': 3.0, 'hd95_mm': 3.0, 'hd95_pooled_mm': 3.0, 'assd_mm': 3.0, 'surface_dice': 0.0}
    """
    truth, prediction = truth.astype(bool, copy=False), prediction.astype(bool, copy=False)
    _check(truth, prediction, spacing_mm)
    shares = SHARES if with_area else SHARES[:1]
    box = _box(truth, prediction)
    if box is None:
        return dict.fromkeys((*DISTANCES, *shares), float("nan"))
    inside, predicted = truth[box], prediction[box]  # distances do not need the empty rest of the volume
    if not inside.any() or not predicted.any():
        return dict.fromkeys(DISTANCES, diagonal_mm(truth.shape, spacing_mm)) | dict.fromkeys(shares, 0.0)
    found = _voxel_distances(inside, predicted, spacing_mm)
    both = np.concatenate(found)
    figures = {
        "hausdorff_mm": float(both.max()),
        "hd95_mm": _directed(*found, percentile=95.0),
        "hd95_pooled_mm": float(np.percentile(both, 95.0)),
        "assd_mm": float(both.mean()),
        "surface_dice": float((both <= tolerance_mm).mean()),
    }
    if with_area:
        figures["surface_dice_area"] = _area_within(inside, predicted, spacing_mm, tolerance_mm)
    return figures


def hd95_mm(truth: np.ndarray, prediction: np.ndarray, spacing_mm: Spacing, percentile: float = 95.0) -> float:
    """Hausdorff distance at a percentile (100 is the classical maximum), mm: the larger of the two directed percentiles.

    >>> masks = np.zeros((2, 9, 9, 9), dtype=bool)
    >>> masks[0, 1, 4, 4] = masks[1, 3, 4, 4] = True
    >>> hd95_mm(masks[0], masks[1], spacing_mm=(1.5, 1.0, 1.0))
    3.0
    """
    truth, prediction = truth.astype(bool, copy=False), prediction.astype(bool, copy=False)
    if not truth.any() and not prediction.any():
        return float("nan")
    if not truth.any() or not prediction.any():
        return diagonal_mm(truth.shape, spacing_mm)
    return _directed(*surface_distances_mm(truth, prediction, spacing_mm), percentile=percentile)


def surface_distances_mm(truth: np.ndarray, prediction: np.ndarray, spacing_mm: Spacing) -> tuple[np.ndarray, np.ndarray]:
    """How far each surface voxel of one mask is from the other's surface: (from truth (T,), from prediction (P,)), mm.

    Every voxel-wise surface metric is a statistic of these two arrays. Both masks must have voxels.
    """
    _check(truth, prediction, spacing_mm)
    assert truth.any() and prediction.any(), "an empty mask has no surface"
    box = _box(truth, prediction)
    assert box is not None
    return _voxel_distances(truth[box], prediction[box], spacing_mm)


def diagonal_mm(shape: Sequence[int], spacing_mm: Spacing) -> float:
    """Length of the diagonal of a field of view of `shape` voxels, mm."""
    return float(np.linalg.norm(np.multiply(shape, spacing_mm)))


def _directed(from_truth: np.ndarray, from_prediction: np.ndarray, *, percentile: float) -> float:
    return float(max(np.percentile(from_truth, percentile), np.percentile(from_prediction, percentile)))


def _voxel_distances(truth: np.ndarray, prediction: np.ndarray, spacing_mm: Spacing) -> tuple[np.ndarray, np.ndarray]:
    on_truth, on_prediction = (np.flatnonzero(_surface(mask)) for mask in (truth, prediction))
    return _apart(on_truth, on_prediction, truth.shape, spacing_mm)


def _area_within(truth: np.ndarray, prediction: np.ndarray, spacing_mm: Spacing, tolerance_mm: float) -> float:
    """Share of the area of both surfaces that is at most `tolerance_mm` from the other one."""
    corners = tuple(n + 1 for n in truth.shape)
    areas = areas_mm2(spacing_mm)
    (on_truth, truth_codes), (on_prediction, prediction_codes) = surfels(truth), surfels(prediction)
    from_truth, from_prediction = _apart(on_truth, on_prediction, corners, spacing_mm)
    area = np.concatenate([areas[truth_codes], areas[prediction_codes]])
    return float(area[np.concatenate([from_truth, from_prediction]) <= tolerance_mm].sum() / area.sum())


def _apart(first: np.ndarray, second: np.ndarray, shape: tuple[int, ...], spacing_mm: Spacing) -> tuple[np.ndarray, np.ndarray]:
    """From each point of either set (sorted flat indices of a grid) to the nearest of the other, mm."""
    return _to_nearest(first, second, shape, spacing_mm), _to_nearest(second, first, shape, spacing_mm)


def _to_nearest(points: np.ndarray, others: np.ndarray, shape: tuple[int, ...], spacing_mm: Spacing) -> np.ndarray:
    """Two good predictions share most of their surface: only what they do not share is searched for."""
    out = np.zeros(len(points))
    asking = np.flatnonzero(~np.isin(points, others, assume_unique=True))
    if not len(asking):
        return out
    if len(asking) * VOXELS_PER_POINT > np.prod(shape):
        away = np.ones(shape, dtype=bool)
        away.ravel()[others] = False
        out[asking] = ndimage.distance_transform_edt(away, sampling=spacing_mm).ravel()[points[asking]]
        return out
    tree = spatial.KDTree(_places_mm(others, shape, spacing_mm), leafsize=LEAF)
    out[asking] = tree.query(_places_mm(points[asking], shape, spacing_mm))[0]
    return out


def _places_mm(flat: np.ndarray, shape: tuple[int, ...], spacing_mm: Spacing) -> np.ndarray:
    return np.stack(np.unravel_index(flat, shape), axis=1) * np.asarray(spacing_mm, dtype=np.float64)


def _surface(mask: np.ndarray) -> np.ndarray:
    """The mask less its erosion. Beyond the border is outside, as in MONAI: an object that touches it has a surface there."""
    padded, inner = np.pad(mask, 1), mask.copy()
    for axis in range(mask.ndim):
        for step in (0, 2):
            shifted = tuple(slice(step, step + n) if a == axis else slice(1, 1 + n) for a, n in enumerate(mask.shape))
            inner &= padded[shifted]
    return mask & ~inner


def _box(truth: np.ndarray, prediction: np.ndarray) -> tuple[slice, ...] | None:
    """The smallest box that holds both masks; None when both are empty."""
    either = truth | prediction
    sides = []
    for axis in range(either.ndim):
        there = np.flatnonzero(either.any(axis=tuple(a for a in range(either.ndim) if a != axis)))
        if not len(there):
            return None
        sides.append(slice(int(there[0]), int(there[-1]) + 1))
        either = either[(slice(None),) * axis + (sides[-1],)]
    return tuple(sides)


def _check(truth: np.ndarray, prediction: np.ndarray, spacing_mm: Spacing) -> None:
    if truth.shape != prediction.shape or len(spacing_mm) != truth.ndim:
        raise ValueError(
            f"truth {truth.shape}, prediction {prediction.shape}, spacing {spacing_mm}: give one grid and its spacing"
        )
