"""Overlap of two masks, or of two label maps class by class.

In: truth and prediction on one grid, any shape: boolean masks, or integer label maps with K classes.
Out: floats 0..1.
Empty masks, the one policy of all metrics here: both empty -> nan (there is nothing to find and nothing was found; the caller
counts these), exactly one empty -> 0 (a structure missed, or seen where there is none). Nothing is dropped silently.
Source: Dice 1945; Jaccard 1912.
"""

import numpy as np

from mri_ds.metrics.classification import confusion_matrix


def dice(truth: np.ndarray, prediction: np.ndarray) -> float:
    """2 |T and P| / (|T| + |P|) of two boolean masks; nan when both are empty.

    >>> dice(np.array([True, True, False]), np.array([True, False, False]))
    0.6666666666666666
    """
    return float(dice_per_class(truth, prediction, num_classes=2)[1])


def jaccard(truth: np.ndarray, prediction: np.ndarray) -> float:
    """|T and P| / |T or P| of two boolean masks; nan when both are empty.

    >>> jaccard(np.array([True, True, False]), np.array([True, False, False]))
    0.5
    """
    confusion = confusion_matrix(truth, prediction, num_classes=2)
    union = confusion.sum() - confusion[0, 0]
    return float(confusion[1, 1] / union) if union else float("nan")


def dice_per_class(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Dice of every class of two label maps, (K,) float64; one pass over the voxels; nan where both lack the class.

    >>> dice_per_class(np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1]), num_classes=3).tolist()
    [0.6666666666666666, 0.8, nan]
    """
    confusion = confusion_matrix(truth, prediction, num_classes)
    sizes = confusion.sum(axis=0) + confusion.sum(axis=1)
    with np.errstate(invalid="ignore"):  # 0 / 0 is the documented nan
        return 2 * np.diag(confusion) / sizes
