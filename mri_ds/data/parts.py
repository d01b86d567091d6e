"""Connected parts of a label map: how large they are in training, and which predicted ones are too small to be believed.

Axes: K classes, D H W voxels; volumes in ml. Voxels that share a face, an edge or a corner are connected.
A network sprinkles single voxels of a rare class over the brain. One such voxel turns a healthy subject into one with a lesion,
so parts far smaller than any that people drew are given to the next best class (after Isensee et al. 2021, nnU-Net, who drop all
parts but the largest where that helps; here many parts may be right, as with lesions).
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

CONNECTED = np.ones((3, 3, 3), dtype=bool)
SMALL_PERCENTILE = 5.0  # of the parts that training labels have; not their minimum, which is one stray voxel in many sets
CREDIBLE_SHARE = 0.5  # of that percentile: a predicted part may be this much smaller than what people drew


def part_volumes_ml(labels: np.ndarray, num_classes: int, voxel_ml: float) -> list[np.ndarray]:
    """Volume of each connected part of each class but background: labels (D, H, W) -> K - 1 arrays of ml.

    >>> part_volumes_ml(np.array([[[1, 1, 0, 1, 2]]]), num_classes=3, voxel_ml=0.001)
    [array([0.002, 0.001]), array([0.001])]
    """
    boxes = ndimage.find_objects(labels, max_label=num_classes - 1)
    return [_sizes(labels[box] == k)[1:] * voxel_ml if box else np.zeros(0) for k, box in enumerate(boxes, start=1)]


def smallest_part_ml(volumes_ml: Sequence[Sequence[float]]) -> float:
    """The 5th percentile of the parts of one class over the training subjects; 0 when there are none."""
    parts = np.array([volume for subject in volumes_ml for volume in subject])
    return float(np.percentile(parts, SMALL_PERCENTILE)) if parts.size else 0.0


def small_parts(
    labels: np.ndarray, smallest_ml: Sequence[float], is_always_present: Sequence[bool], voxel_ml: float
) -> tuple[np.ndarray, list[float]]:
    """Where labels (D, H, W) have parts below half of `smallest_ml`: mask (D, H, W), and the ml of them in each class.

    smallest_ml, is_always_present: one per class, background first (not looked at). Of a class that every training subject has,
    the largest part counts as large whatever its size: a shrunken organ is a finding, not noise.
    """
    is_small, small_ml = np.zeros(labels.shape, dtype=bool), [0.0] * len(smallest_ml)
    boxes = ndimage.find_objects(labels, max_label=len(smallest_ml) - 1)
    for k, box in enumerate(boxes, start=1):
        limit = CREDIBLE_SHARE * smallest_ml[k] / voxel_ml
        if limit <= 1 or box is None:
            continue
        parts, _ = ndimage.label(labels[box] == k, CONNECTED)
        sizes = np.bincount(parts.ravel())
        sizes[0] = labels.size  # what is not of the class is never small
        if is_always_present[k]:
            sizes[1 + int(sizes[1:].argmax())] = labels.size
        small = (sizes < limit)[parts]
        is_small[box] |= small
        small_ml[k] = float(small.sum()) * voxel_ml
    return is_small, small_ml


def _sizes(mask: np.ndarray) -> np.ndarray:
    """Voxels of each connected part of a mask, the voxels outside it first."""
    return np.bincount(ndimage.label(mask, CONNECTED)[0].ravel(), minlength=1)
