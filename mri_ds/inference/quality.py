"""How good a segmentation probably is, told from the network's own probabilities, without the truth.

Axes: K classes, D H W voxels.
In: probabilities (K, D, H, W) and the label map.  Out: per class the Dice that they lead one to expect.
The soft Dice of a mask and its own probabilities is the ratio of the expected overlap to the expected sizes: what Dice would be
if voxels were independent and their probabilities right. They are neither, so a line through validation subjects brings it to
the scale of real Dice; the order of subjects, which decides who is looked at again, is the soft Dice's own.
Its errors, each on a subject that was left out, give the interval that holds the Dice with a chosen probability.
Source: Borges et al. 2024 (soft Dice confidence); Kohlberger et al. 2012 (the quality of a segmentation without its truth).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MIN_SUBJECTS = 3


@dataclass(frozen=True)
class Line:
    """expected Dice = intercept + slope x soft Dice."""

    intercept: float = 0.0
    slope: float = 1.0

    def at(self, soft_dice: float) -> float:
        """0..1; nan stays nan."""
        return float(np.clip(self.intercept + self.slope * soft_dice, 0, 1))


def soft_dice(probabilities: np.ndarray, labels: np.ndarray, *, is_always_present: Sequence[bool] = ()) -> list[float]:
    """0..1 for each class but 0; of a class that was not found: 0 where every training subject had it, else nan.

    >>> p = np.array([[[[0.2, 0.7]]], [[[0.8, 0.3]]]])
    >>> [round(x, 4) for x in soft_dice(p, p.argmax(axis=0))]  # 2 x 0.8 / (1.1 + 1)
    [0.7619]
    """
    masks = [labels == k for k in range(len(probabilities))]
    rows = [[p.sum(dtype=np.float64), p[mask].sum(dtype=np.float64), mask.sum()] for p, mask in zip(probabilities, masks)]
    return soft_dice_of_sums(np.array(rows).T, is_always_present=is_always_present)


def soft_dice_of_sums(sums: np.ndarray, *, is_always_present: Sequence[bool] = ()) -> list[float]:
    """The same from sums (3, K): of a class's probabilities everywhere, of those where it is the label, and its voxels.

    >>> round(soft_dice_of_sums(np.array([[0, 1.1], [0, 0.8], [1, 1]]))[0], 4)
    0.7619
    """
    scores = []
    for k in range(1, sums.shape[1]):
        everywhere, inside, num = sums[:, k]
        missed = 0.0 if k < len(is_always_present) and is_always_present[k] else math.nan
        scores.append(float(2 * inside / (everywhere + num)) if num else missed)
    return scores


def line_errors(soft: np.ndarray, dice: np.ndarray) -> np.ndarray:
    """How far the Dice of each subject (N,) is from the line through the others, where both are known: (n,), 0..1.

    Each is an error on a subject that its line has not seen, which is what a further one's will be (Barber et al. 2021).
    """
    known = np.isfinite(soft) & np.isfinite(dice)
    x, y = soft[known], dice[known]
    others = [np.arange(len(x)) != i for i in range(len(x))]
    return np.array([abs(fit_line(x[rest], y[rest]).at(x[i]) - y[i]) for i, rest in enumerate(others)])


def fit_line(soft: np.ndarray, dice: np.ndarray) -> Line:
    """Least squares over subjects (N,) where both are known; as it is for fewer than three, or where more does not mean more."""
    known = np.isfinite(soft) & np.isfinite(dice)
    x, y = soft[known], dice[known]
    if len(x) < MIN_SUBJECTS or np.ptp(x) == 0:
        return Line()
    slope = float(np.cov(x, y)[0, 1] / np.var(x, ddof=1))
    return Line(float(y.mean() - slope * x.mean()), slope) if slope > 0 else Line()


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """How undecided each voxel is, (D, H, W) float32: 0 for one certain class, 1 for K equally likely ones. One class at a time.

    >>> entropy(np.array([[[[1.0, 0.5]]], [[[0.0, 0.5]]]])).ravel().tolist()
    [0.0, 1.0]
    """
    total = np.zeros(probabilities.shape[1:], dtype=np.float32)
    for p in probabilities:
        total -= p * np.log(p, out=np.zeros_like(p), where=p > 0)
    return np.clip(total / math.log(len(probabilities)), 0, 1).astype(np.float32) if len(probabilities) > 1 else total
