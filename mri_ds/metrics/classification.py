"""Classification metrics that do not flatter the majority class.

Axes: N subjects (or voxels), K classes.
In: truth (N,) and prediction (N,) as class indices, or probabilities (N, K).  Out: floats; nan where a figure is not defined.
Source: Brodersen et al. 2010 (balanced accuracy); Hand and Till 2001 and Mann and Whitney 1947 (AUC as a rank statistic);
Davis and Goadrich 2006 (average precision without interpolation); Matthews 1975 and Gorodkin 2004 (MCC of several classes).
"""

import numpy as np


def balanced_accuracy(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> float:
    """Mean recall over the classes that occur in `truth`, 0..1; nan without subjects.

    >>> balanced_accuracy(np.array([0, 0, 0, 1]), np.array([0, 0, 0, 0]), num_classes=2)
    0.5
    """
    confusion = confusion_matrix(truth, prediction, num_classes)
    support = confusion.sum(axis=1)
    present = support > 0
    return float(np.mean(np.diag(confusion)[present] / support[present])) if present.any() else float("nan")


def roc_auc_ovr(truth: np.ndarray, probabilities: np.ndarray) -> float:
    """Area under the ROC curve, one class against the rest, averaged over classes with equal weight (macro), 0..1.

    truth (N,) class indices; probabilities (N, K), or any scores. A class that is absent from `truth`, or that is all of it,
    has no ROC curve and is left out of the mean; nan when no class has one.

    >>> roc_auc_ovr(np.array([0, 0, 1, 1]), np.array([[0.9, 0.1], [0.6, 0.4], [0.65, 0.35], [0.2, 0.8]]))
    0.75
    """
    if probabilities.ndim != 2 or len(probabilities) != len(truth):
        raise ValueError(f"probabilities of shape {probabilities.shape} for {len(truth)} subjects: give (N, K)")
    areas = [roc_auc(truth == k, probabilities[:, k]) for k in range(probabilities.shape[1])]
    defined = [area for area in areas if not np.isnan(area)]
    return float(np.mean(defined)) if defined else float("nan")


def average_precision_ovr(truth: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean precision at each positive found, one class against the rest, averaged over classes with equal weight (macro), 0..1.

    truth (N,) class indices; probabilities (N, K), or any scores. A predictor that knows nothing scores a class's share. A
    class that is absent from `truth` is left out of the mean; nan when none is there.

    >>> average_precision_ovr(np.array([0, 1, 1]), np.array([[0.9, 0.1], [0.3, 0.7], [0.2, 0.8]]))
    1.0
    """
    if probabilities.ndim != 2 or len(probabilities) != len(truth):
        raise ValueError(f"probabilities of shape {probabilities.shape} for {len(truth)} subjects: give (N, K)")
    found = [average_precision(truth == k, probabilities[:, k]) for k in range(probabilities.shape[1])]
    defined = [value for value in found if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def matthews_correlation(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> float:
    """MCC of any number of classes, -1..1; 0 for one that always says the same, as in scikit-learn; nan without subjects.

    >>> matthews_correlation(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), num_classes=2)  # doctest: +ELLIPSIS
    0.577...
    """
    confusion = confusion_matrix(truth, prediction, num_classes).astype(np.float64)
    total, right = confusion.sum(), np.trace(confusion)
    if not total:
        return float("nan")
    of_truth, of_prediction = confusion.sum(axis=1), confusion.sum(axis=0)
    spread = (total**2 - of_truth @ of_truth) * (total**2 - of_prediction @ of_prediction)
    return float((right * total - of_truth @ of_prediction) / np.sqrt(spread)) if spread > 0 else 0.0


def cohens_kappa(one: np.ndarray, other: np.ndarray, num_classes: int) -> float:
    """Agreement of two readers beyond chance (Cohen 1960), up to 1; nan where chance alone makes them agree always.

    >>> cohens_kappa(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), num_classes=2)
    0.5
    """
    confusion = confusion_matrix(one, other, num_classes).astype(np.float64)
    total = confusion.sum()
    by_chance = float(confusion.sum(axis=0) @ confusion.sum(axis=1)) / max(total, 1) ** 2
    return float((np.trace(confusion) / total - by_chance) / (1 - by_chance)) if total and by_chance < 1 else float("nan")


def confusion_matrix(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts (K, K) int64: row is the true class, column the predicted one. Arrays of any (equal) shape.

    Raises ValueError for unequal shapes or an index outside 0..K-1.

    >>> confusion_matrix(np.array([0, 1, 1]), np.array([0, 0, 1]), num_classes=2).tolist()
    [[1, 0], [1, 1]]
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"truth {truth.shape} and prediction {prediction.shape} differ in shape: bring them to one grid")
    for name, labels in (("truth", truth), ("prediction", prediction)):
        if labels.size and not (labels.min() >= 0 and labels.max() < num_classes):
            raise ValueError(f"{name} holds classes {labels.min()}..{labels.max()}, outside 0..{num_classes - 1}")
    pairs = truth.ravel().astype(np.int64) * num_classes + prediction.ravel()
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def roc_auc(is_positive: np.ndarray, scores: np.ndarray) -> float:
    """Share of (positive, negative) pairs that the scores order correctly; a tie counts half. nan without such a pair.

    >>> roc_auc(np.array([True, True, False]), np.array([0.9, 0.2, 0.2]))
    0.75
    """
    num_positive = int(is_positive.sum())
    num_negative = len(is_positive) - num_positive
    if num_positive == 0 or num_negative == 0:
        return float("nan")
    if np.isnan(scores).any():
        return float("nan")
    _, place, ties = np.unique(scores, return_inverse=True, return_counts=True)
    midranks = np.cumsum(ties) - (ties - 1) / 2  # this is where a tie becomes a half
    rank_sum = midranks[place][is_positive].sum()
    return float((rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def average_precision(is_positive: np.ndarray, scores: np.ndarray) -> float:
    """Sum over thresholds of precision times the recall gained there; equal scores are one threshold. nan without a positive.

    >>> average_precision(np.array([True, False, True]), np.array([0.9, 0.8, 0.7])) == (1 + 2 / 3) / 2
    True
    """
    if not is_positive.any() or np.isnan(scores).any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    falling, positive = scores[order], is_positive[order]
    last_of_tie = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)
    found = np.cumsum(positive)[last_of_tie]
    return float(np.diff(found, prepend=0) @ (found / (last_of_tie + 1)) / found[-1])
