"""Found lesion by lesion, however large each is: connected parts of two masks matched by touch.

Axes: D H W voxels.
In: truth and prediction (D, H, W) boolean masks on one grid.  Out: counts, and shares 0..1.
A lesion is a part whose voxels touch by faces, edges or corners. A true lesion is found where the prediction covers at least
`min_overlap` of its voxels (by default any one voxel); a predicted lesion is right where it lies on the truth by as much.
Source: Commowick et al. 2018, "Objective evaluation of multiple sclerosis lesion segmentation" (detection figures; there 10 %).
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage


class LesionCounts(NamedTuple):
    """How many true lesions there are and were found, how many were predicted and are right."""

    num_true: int
    num_found: int
    num_predicted: int
    num_right: int


def lesion_counts(truth: np.ndarray, prediction: np.ndarray, *, min_overlap: float = 0.0) -> LesionCounts:
    """min_overlap: share of a lesion's voxels, 0 (one voxel is enough) to 1.

    >>> lesion_counts(np.array([1, 1, 0, 0, 1]) > 0, np.array([0, 1, 0, 1, 0]) > 0)
    LesionCounts(num_true=2, num_found=1, num_predicted=2, num_right=1)
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"truth {truth.shape} and prediction {prediction.shape} differ in shape: bring them to one grid")
    if not 0 <= min_overlap <= 1:
        raise ValueError(f"min_overlap {min_overlap} is no share: give 0 to 1")
    return LesionCounts(*_covered(truth, prediction, min_overlap), *_covered(prediction, truth, min_overlap))


def lesion_f1(truth: np.ndarray, prediction: np.ndarray, *, min_overlap: float = 0.0) -> float:
    """Harmonic mean of the share of true lesions that are found and of predicted ones that are right.

    Both masks empty -> nan, to be counted by the caller; exactly one empty -> 0.

    >>> lesion_f1(np.array([1, 1, 0, 0, 1]) > 0, np.array([0, 1, 0, 1, 0]) > 0)
    0.5
    """
    return f1_of(lesion_counts(truth, prediction, min_overlap=min_overlap))


def f1_of(counts: LesionCounts) -> float:
    if not counts.num_true and not counts.num_predicted:
        return float("nan")
    if not counts.num_found or not counts.num_right:
        return 0.0
    found, right = counts.num_found / counts.num_true, counts.num_right / counts.num_predicted
    return 2 * found * right / (found + right)


def _covered(mask: np.ndarray, by: np.ndarray, min_overlap: float) -> tuple[int, int]:
    """Number of connected parts of `mask`, and of those that `by` covers enough of."""
    if not mask.any():
        return 0, 0
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    parts, number = ndimage.label(mask[box], structure=np.ones((3,) * mask.ndim))
    sizes = np.bincount(parts.ravel(), minlength=number + 1)[1:]
    shared = np.bincount(parts[by[box].astype(bool)], minlength=number + 1)[1:]
    return number, int(((shared > 0) & (shared >= min_overlap * sizes)).sum())
