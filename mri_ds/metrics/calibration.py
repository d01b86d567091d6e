"""Whether probabilities mean what they say.

Axes: N subjects, K classes.
In: truth (N,) class indices, probabilities (N, K) that sum to 1.  Out: floats, 0 is perfect; nan without subjects.
Source: Brier 1950; Naeini et al. 2015 and Guo et al. 2017 (ECE of the top class, bins of equal width).
"""

import numpy as np


def brier_score(truth: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean squared distance of the probabilities from the true class, halved for two classes, as in scikit-learn, where it is
    that of one probability.

    >>> round(brier_score(np.array([0, 1]), np.array([[0.9, 0.1], [0.4, 0.6]])), 3)
    0.085
    """
    _check(truth, probabilities)
    if not len(truth):
        return float("nan")
    is_true = np.eye(probabilities.shape[1])[truth]
    halved = 2 if probabilities.shape[1] == 2 else 1
    return float(np.square(probabilities - is_true).sum(axis=1).mean() / halved)


def calibration_error(truth: np.ndarray, probabilities: np.ndarray, num_bins: int = 15) -> float:
    """ECE: how far confidence (the largest probability) is from accuracy, mean over bins weighted by the subjects in them.

    Bins (i / n, (i + 1) / n] of equal width. With few subjects it is large by chance: 15 bins want hundreds.

    >>> round(calibration_error(np.array([0, 1]), np.array([[0.9, 0.1], [0.9, 0.1]])), 3)
    0.4
    """
    _check(truth, probabilities)
    if not len(truth):
        return float("nan")
    confidence, is_right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    inner = np.linspace(0, 1, num_bins + 1)[1:-1]
    bins = np.digitize(confidence, inner, right=True)
    gap = np.bincount(bins, weights=is_right, minlength=num_bins) - np.bincount(bins, weights=confidence, minlength=num_bins)
    return float(np.abs(gap).sum() / len(truth))


def _check(truth: np.ndarray, probabilities: np.ndarray) -> None:
    if probabilities.ndim != 2 or len(probabilities) != len(truth):
        raise ValueError(f"probabilities of shape {probabilities.shape} for {len(truth)} subjects: give (N, K)")
