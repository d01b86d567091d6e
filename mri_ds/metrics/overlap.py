"""Overlap of two masks, or of two label maps class by class.

In: truth and prediction on one grid, any shape: boolean masks, or integer label maps with K classes.
Out: floats 0..1, and a volume's error.
Empty masks, the one policy of all metrics here: both empty -> nan (there is nothing to find and nothing was found; the caller
counts these), exactly one empty -> Dice and IoU are 0 (a structure missed, or seen where there is none). Of the figures that ask
about one side only, that side empty -> nan: nothing to be sensitive to, nothing claimed that could be wrong. What is nan is
counted by the caller, as missed, false alarm or empty. Nothing is dropped silently.
Source: Dice 1945; Jaccard 1912; Maier-Hein et al. 2024, Metrics Reloaded.
"""

import numpy as np

from mri_ds.metrics.classification import confusion_matrix


def overlap_figures(truth: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """Every overlap figure of two boolean masks by name, from one count of their voxels.

    >>> overlap_figures(np.array([True, True, False, False]), np.array([True, False, True, False]))  # doctest: +ELLIPSIS
    {'dice': 0.5, 'iou': 0.333..., 'sensitivity': 0.5, 'specificity': 0.5, 'precision': 0.5, 'volume_error': 0.0}
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"truth {truth.shape} and prediction {prediction.shape} differ in shape: bring them to one grid")
    truth, prediction = truth.astype(bool, copy=False), prediction.astype(bool, copy=False)
    there, called, hit = (int(np.count_nonzero(mask)) for mask in (truth, prediction, truth & prediction))
    return figures_of_counts(
        hit=hit, missed=there - hit, false_positive=called - hit, true_negative=truth.size - there - called + hit
    )


def figures_of_counts(*, hit: int, missed: int, false_positive: int, true_negative: int) -> dict[str, float]:
    """The same from numbers of voxels."""
    return {
        "dice": _ratio(2 * hit, 2 * hit + missed + false_positive),
        "iou": _ratio(hit, hit + missed + false_positive),
        "sensitivity": _ratio(hit, hit + missed),
        "specificity": _ratio(true_negative, true_negative + false_positive),
        "precision": _ratio(hit, hit + false_positive),
        "volume_error": _ratio(false_positive - missed, hit + missed),
    }


def dice(truth: np.ndarray, prediction: np.ndarray) -> float:
    """2 |T and P| / (|T| + |P|) of two boolean masks; nan when both are empty.

    >>> dice(np.array([True, True, False]), np.array([True, False, False]))
    0.6666666666666666
    """
    return overlap_figures(truth, prediction)["dice"]


def jaccard(truth: np.ndarray, prediction: np.ndarray) -> float:
    """|T and P| / |T or P| of two boolean masks, also called IoU; nan when both are empty.

    >>> jaccard(np.array([True, True, False]), np.array([True, False, False]))
    0.5
    """
    return overlap_figures(truth, prediction)["iou"]


def sensitivity(truth: np.ndarray, prediction: np.ndarray) -> float:
    """|T and P| / |T|, also called recall: how much of the truth was found; nan without truth.

    >>> sensitivity(np.array([True, True, False]), np.array([True, False, False]))
    0.5
    """
    return overlap_figures(truth, prediction)["sensitivity"]


def specificity(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Share of the voxels outside the truth that are left alone; near 1 for any small structure. nan when truth is everything.

    >>> specificity(np.array([True, False, False]), np.array([True, True, False]))
    0.5
    """
    return overlap_figures(truth, prediction)["specificity"]


def precision(truth: np.ndarray, prediction: np.ndarray) -> float:
    """|T and P| / |P|: how much of what was called is right; nan when nothing was called.

    >>> precision(np.array([True, False, False]), np.array([True, True, False]))
    0.5
    """
    return overlap_figures(truth, prediction)["precision"]


def volume_error(truth: np.ndarray, prediction: np.ndarray) -> float:
    """(|P| - |T|) / |T|: -1 for a miss, above 0 for too much; nan without truth. Its mean over subjects is the bias.

    >>> volume_error(np.array([True, True, False]), np.array([True, False, False]))
    -0.5
    """
    return overlap_figures(truth, prediction)["volume_error"]


def dice_per_class(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Dice of every class of two label maps, (K,) float64; one pass over the voxels; nan where both lack the class.

    >>> dice_per_class(np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1]), num_classes=3).tolist()
    [0.6666666666666666, 0.8, nan]
    """
    confusion = confusion_matrix(truth, prediction, num_classes)
    sizes = confusion.sum(axis=0) + confusion.sum(axis=1)
    with np.errstate(invalid="ignore"):  # 0 / 0 is the documented nan
        return 2 * np.diag(confusion) / sizes


def without_ignored(truth: np.ndarray, prediction: np.ndarray, ignore: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Label maps of which voxels with the true label `ignore` count for nothing: both maps with background there, and where.

    In every mask of a class neither side has voxels there, which is what MONAI's ignore_index does; figures that count what is
    outside of masks too (specificity) must leave these voxels out. None ignores nothing.

    >>> truth, prediction, counts = without_ignored(np.array([0, 1, 9]), np.array([1, 1, 1]), ignore=9)
    >>> truth.tolist(), prediction.tolist(), counts.tolist()
    ([0, 1, 0], [1, 1, 0], [True, True, False])
    """
    if ignore is None:
        return truth, prediction, np.ones(truth.shape, dtype=bool)
    counts = truth != ignore
    return np.where(counts, truth, 0), np.where(counts, prediction, 0), counts


def _ratio(part: int, whole: int) -> float:
    return float(part / whole) if whole else float("nan")
