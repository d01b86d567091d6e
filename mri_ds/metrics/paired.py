"""Two predictors on the same subjects: tests of the differences, their correction for number, and how large an effect is.

Axes: N subjects, P patients.
Several scans of one patient are not independent. Differences of scans are therefore brought to one number a patient first
(`of_patients`: their mean for ranks, their sum for flips of sign, which keep the mean over scans), and intervals of means draw
patients. What is right or wrong is compared by flips of sign of patients too: with one scan each that is McNemar's exact test.
In: differences (N,) or right-and-wrong (N,) of both.  Out: two-sided p-values 0..1, effect sizes, intervals.
A test without any evidence (no subject, or no difference at all) gives p = 1, not nan.
Source: Wilcoxon 1945; Holm 1979; McNemar 1947 in its exact form; Kerby 2014 (rank-biserial correlation of matched pairs);
Phipson and Smyth 2010 (a permutation p-value is never 0); Korn and Graubard 1998 (exact limits at the effective sample size).
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from mri_ds.metrics.statistics import Patients, patient_numbers

EXACT_UP_TO = 13  # differences: 8,192 ways to flip their signs
CHUNK = 1000  # resamples at a time, which bounds memory
ROUNDING = 1e-12  # relative; sums of the same numbers in another order are no larger


def of_patients(differences: np.ndarray, patients: Patients | None) -> tuple[np.ndarray, np.ndarray]:
    """Differences (N,) -> each patient's sum and number of scans, both (P,), in the order of their first scans.

    >>> [x.tolist() for x in of_patients(np.array([1.0, 2.0, 5.0]), ["a", "b", "a"])]
    [[6.0, 2.0], [2.0, 1.0]]
    """
    patient = patient_numbers(len(differences), patients)
    return np.bincount(patient, weights=differences), np.bincount(patient).astype(np.float64)


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


def mcnemar_p(is_right_a: np.ndarray, is_right_b: np.ndarray, patients: Patients | None = None, *, seed: int = 0) -> float:
    """McNemar's exact test: of the subjects that only one got right, is either's share more than chance? (N,) booleans.

    Where a patient has several scans, `sign_flip_p` of how many more of them B got right: under the null A and B could have
    changed places for each patient.

    >>> mcnemar_p(np.array([1, 1, 1, 1, 1, 0]) > 0, np.array([0, 0, 0, 0, 0, 0]) > 0)
    0.0625
    """
    more, num_scans = of_patients(is_right_b.astype(np.float64) - is_right_a, patients)
    if (num_scans > 1).any():
        return sign_flip_p(more, seed=seed)
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


def mcnemar_effect(
    is_right_a: np.ndarray, is_right_b: np.ndarray, patients: Patients | None = None, level: float = 0.95
) -> tuple[float, float, float]:
    """Cohen's g, -0.5..0.5 (of the subjects that only one got right, the share that is B's, less a half), low and high.

    The interval is Clopper and Pearson's, where a patient has several such scans at their effective number (what the spread
    between patients makes of it); without such subjects it is all there is: (0, -0.5, 0.5).
    """
    only_a, only_b = int((is_right_a & ~is_right_b).sum()), int((is_right_b & ~is_right_a).sum())
    if not only_a + only_b:
        return 0.0, -0.5, 0.5
    is_discordant = is_right_a != is_right_b
    whose = patient_numbers(len(is_right_a), patients)[is_discordant]
    if len(np.unique(whose)) < len(whose):
        return _korn_graubard(is_right_b[is_discordant].astype(np.float64), whose.tolist(), level)
    test = stats.binomtest(only_b, only_a + only_b)
    interval = test.proportion_ci(level, method="exact")
    return float(test.statistic) - 0.5, float(interval.low) - 0.5, float(interval.high) - 0.5


def bootstrap(
    statistic: Callable[..., np.ndarray],
    differences: np.ndarray,
    *,
    num_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    weights: np.ndarray | None = None,
) -> tuple[float, float]:
    """Percentile interval of a statistic that maps (resamples, N) to (resamples,); (nan, nan) without subjects.

    weights (N,) are drawn along and handed over beside the differences.
    """
    if not len(differences):
        return float("nan"), float("nan")
    dice, values = np.random.default_rng(seed), []
    for start in range(0, num_resamples, CHUNK):
        chosen = dice.integers(0, len(differences), size=(min(CHUNK, num_resamples - start), len(differences)))
        values.append(statistic(differences[chosen], *([] if weights is None else [weights[chosen]])))
    low, high = np.quantile(np.concatenate(values), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_interval(
    differences: np.ndarray, patients: Patients | None = None, *, num_resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval of the mean difference; patients are drawn, each with all of its scans."""
    sums, num_scans = of_patients(differences, patients)
    if (num_scans > 1).any():
        return bootstrap(
            lambda drawn, counts: drawn.sum(axis=1) / counts.sum(axis=1),
            sums,
            num_resamples=num_resamples,
            seed=seed,
            weights=num_scans,
        )
    return bootstrap(lambda resampled: resampled.mean(axis=1), differences, num_resamples=num_resamples, seed=seed)


def rank_biserial_interval(differences: np.ndarray, *, num_resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of `rank_biserial`."""
    return bootstrap(_rank_biserial, differences, num_resamples=num_resamples, seed=seed)


def _korn_graubard(is_b: np.ndarray, patients: Patients, level: float) -> tuple[float, float, float]:
    """Share (n,) of ones less a half, and its limits at the effective sample size."""
    hits, num = of_patients(is_b, patients)
    share, count = float(is_b.mean()), len(num)
    spread = float(((hits - share * num) ** 2).sum()) * count / max(count - 1, 1) / float(num.sum()) ** 2
    effective = min(share * (1 - share) / spread, float(num.sum())) if spread > 0 else float(count)
    good, bad = effective * share, effective * (1 - share)
    low = float(stats.beta.ppf((1 - level) / 2, good, bad + 1)) if good > 0 else 0.0
    high = float(stats.beta.ppf((1 + level) / 2, good + 1, bad)) if bad > 0 else 1.0
    return share - 0.5, low - 0.5, high - 0.5


def _rank_biserial(differences: np.ndarray) -> np.ndarray:
    """(M, N) -> (M,). Zeros count for neither side, and the others' ranks are those of Wilcoxon's test."""
    sizes = np.abs(differences)
    num_zero = (sizes == 0).sum(axis=1, keepdims=True)
    ranks = np.where(sizes > 0, stats.rankdata(sizes, axis=1) - num_zero, 0)
    total = ranks.sum(axis=1)
    return np.divide((np.sign(differences) * ranks).sum(axis=1), total, out=np.zeros(len(sizes)), where=total > 0)
