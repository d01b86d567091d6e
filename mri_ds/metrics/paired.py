"""Two predictors on the same subjects: tests of the differences, their correction for number, and how large an effect is.

Axes: N subjects.
In: differences (N,) or right-and-wrong (N,) of both.  Out: two-sided p-values 0..1, effect sizes, intervals.
A test without any evidence (no subject, or no difference at all) gives p = 1, not nan.
Source: Wilcoxon 1945; Holm 1979; McNemar 1947 in its exact form; Kerby 2014 (rank-biserial correlation of matched pairs);
Phipson and Smyth 2010 (a permutation p-value is never 0).
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

EXACT_UP_TO = 13  # differences: 8,192 ways to flip their signs
CHUNK = 1000  # resamples at a time, which bounds memory
ROUNDING = 1e-12  # relative; sums of the same numbers in another order are no larger


def wilcoxon_p(differences: np.ndarray) -> float:
    """Wilcoxon's signed-rank test of (N,) differences about 0; zeros are left out, ties get mean ranks.

    >>> wilcoxon_p(np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
    0.03125
    """
    moved = differences[differences != 0]
    return float(stats.wilcoxon(moved).pvalue) if len(moved) else 1.0


def sign_flip_p(differences: np.ndarray, *, num_permutations: int = 9999, seed: int = 0) -> float:
    """Permutation test of the mean of (N,) differences: under the null each could have had either sign.

    All 2^N ways for few differences, else `num_permutations` drawn ones.

    >>> sign_flip_p(np.array([1.0, 2.0, 3.0]))
    0.25
    """
    moved = differences[differences != 0]
    if not len(moved):
        return 1.0
    observed = abs(moved.sum()) * (1 - ROUNDING)
    if len(moved) <= EXACT_UP_TO:
        flips = (np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved))) & 1
        return float((np.abs((1 - 2 * flips) @ moved) >= observed).mean())
    dice, extreme = np.random.default_rng(seed), 0
    for start in range(0, num_permutations, CHUNK):
        flips = dice.integers(0, 2, size=(min(CHUNK, num_permutations - start), len(moved)))
        extreme += int((np.abs((1 - 2 * flips) @ moved) >= observed).sum())
    return (extreme + 1) / (num_permutations + 1)


def mcnemar_p(is_right_a: np.ndarray, is_right_b: np.ndarray) -> float:
    """McNemar's exact test: of the subjects that only one got right, is either's share more than chance? (N,) booleans.

    >>> mcnemar_p(np.array([1, 1, 1, 1, 1, 0]) > 0, np.array([0, 0, 0, 0, 0, 0]) > 0)
    0.0625
    """
    only_a, only_b = int((is_right_a & ~is_right_b).sum()), int((is_right_b & ~is_right_a).sum())
    return float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: calling different what is at most alpha errs anywhere with a chance of at most alpha.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def rank_biserial(differences: np.ndarray) -> float:
    """Matched-pairs rank-biserial correlation of (N,) differences, -1..1: share of the rank sum that is positive, less the rest.

    >>> rank_biserial(np.array([3.0, 2.0, -1.0]))
    0.6666666666666666
    """
    return float(_rank_biserial(differences[None])[0])


def mcnemar_effect(is_right_a: np.ndarray, is_right_b: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """Cohen's g, -0.5..0.5 (of the subjects that only one got right, the share that is B's, less a half), low and high.

    The interval is Clopper and Pearson's; without such subjects it is all there is: (0, -0.5, 0.5).
    """
    only_a, only_b = int((is_right_a & ~is_right_b).sum()), int((is_right_b & ~is_right_a).sum())
    if not only_a + only_b:
        return 0.0, -0.5, 0.5
    test = stats.binomtest(only_b, only_a + only_b)
    interval = test.proportion_ci(level, method="exact")
    return float(test.statistic) - 0.5, float(interval.low) - 0.5, float(interval.high) - 0.5


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray],
    differences: np.ndarray,
    *,
    num_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a statistic that maps (resamples, N) to (resamples,); (nan, nan) without subjects."""
    if not len(differences):
        return float("nan"), float("nan")
    dice, values = np.random.default_rng(seed), []
    for start in range(0, num_resamples, CHUNK):
        chosen = dice.integers(0, len(differences), size=(min(CHUNK, num_resamples - start), len(differences)))
        values.append(statistic(differences[chosen]))
    low, high = np.quantile(np.concatenate(values), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_interval(differences: np.ndarray, *, num_resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean difference."""
    return bootstrap(lambda resampled: resampled.mean(axis=1), differences, num_resamples=num_resamples, seed=seed)


def rank_biserial_interval(differences: np.ndarray, *, num_resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of `rank_biserial`."""
    return bootstrap(_rank_biserial, differences, num_resamples=num_resamples, seed=seed)


def _rank_biserial(differences: np.ndarray) -> np.ndarray:
    """(M, N) -> (M,). Zeros count for neither side, and the others' ranks are those of Wilcoxon's test."""
    sizes = np.abs(differences)
    num_zero = (sizes == 0).sum(axis=1, keepdims=True)
    ranks = np.where(sizes > 0, stats.rankdata(sizes, axis=1) - num_zero, 0)
    total = ranks.sum(axis=1)
    return np.divide((np.sign(differences) * ranks).sum(axis=1), total, out=np.zeros(len(sizes)), where=total > 0)
