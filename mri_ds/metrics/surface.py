"""Distance between the surfaces of two masks, in millimetres.

Axes: D H W voxels, spacing_mm (3,) their edge lengths along those axes.
In: truth and prediction (D, H, W) boolean masks on one grid.  Out: millimetres.

Definition, because there are several: the surface is the set of mask voxels with a face neighbour outside the mask, where
everything beyond the field of view is outside; a distance runs between voxel centres; HD95 is the larger of the two directed
95th percentiles (linear interpolation). MONAI's `compute_hausdorff_distance` is the same; medpy pools both directions before the
percentile and DeepMind's surface-distance weights by surface area: both are smaller on the same masks.
Source: Huttenlocher et al. 1993; Maier-Hein et al. 2024, Metrics Reloaded, for the percentile and the empty masks.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

Spacing = Sequence[float] | np.ndarray  # (3,), mm, in the order of the voxel axes


def hd95_mm(truth: np.ndarray, prediction: np.ndarray, spacing_mm: Spacing, percentile: float = 95.0) -> float:
    """Hausdorff distance at a percentile (100 is the classical maximum), mm.

    Both masks empty -> nan, to be counted by the caller. Exactly one empty -> the diagonal of the field of view, the largest
    distance that the volume can hold: a missed structure costs the most instead of vanishing from the mean.

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
    from_truth, from_prediction = surface_distances_mm(truth, prediction, spacing_mm)
    return float(max(np.percentile(from_truth, percentile), np.percentile(from_prediction, percentile)))


def surface_distances_mm(truth: np.ndarray, prediction: np.ndarray, spacing_mm: Spacing) -> tuple[np.ndarray, np.ndarray]:
    """How far each surface voxel of one mask is from the other's surface: (from truth (T,), from prediction (P,)), mm.

    Every surface metric is a statistic of these two arrays. Both masks must have voxels.
    """
    if truth.shape != prediction.shape or len(spacing_mm) != truth.ndim:
        raise ValueError(
            f"truth {truth.shape}, prediction {prediction.shape}, spacing {spacing_mm}: give one grid and its spacing"
        )
    assert truth.any() and prediction.any(), "an empty mask has no surface"
    box = ndimage.find_objects((truth | prediction).astype(np.uint8))[0]  # distances do not need the empty rest of the volume
    on_truth, on_prediction = _surface(truth[box]), _surface(prediction[box])
    return _distance_to(on_prediction, spacing_mm)[on_truth], _distance_to(on_truth, spacing_mm)[on_prediction]


def diagonal_mm(shape: Sequence[int], spacing_mm: Spacing) -> float:
    """Length of the diagonal of a field of view of `shape` voxels, mm."""
    return float(np.linalg.norm(np.multiply(shape, spacing_mm)))


def _surface(mask: np.ndarray) -> np.ndarray:
    # border_value 0: the outermost voxels of an object that touches the border are surface, as in MONAI; 1 would hide them
    return mask & ~ndimage.binary_erosion(mask, border_value=0)


def _distance_to(surface: np.ndarray, spacing_mm: Spacing) -> np.ndarray:
    return ndimage.distance_transform_edt(~surface, sampling=spacing_mm)
