"""How far a figure would move had other subjects been scanned: bootstrap intervals.

Axes: N subjects, P patients that they are of, R resamples.
In: what each subject gave, and the figure as a function of subjects.  Out: (low, high).
Subjects are drawn with replacement; the same seed draws the same ones. The interval is BCa (bias-corrected and accelerated),
which keeps its promise where figures are skewed, as Dice near 1 is; where it is not defined (no spread among the resamples, or
none among the figures that leave one subject out) it is that of percentiles.
Several scans of one patient tell less than as many patients: where `patients` names them, patients are drawn, each with all
scans (the cluster bootstrap), and left out one at a time. With one scan each, every digit is as without.
Source: Efron 1987; Efron and Tibshirani 1993, chapters 13 and 14; Davison and Hinkley 1997, section 3.8; Field and Welsh 2007.
"""

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache

import numpy as np
from scipy.special import ndtr, ndtri

NUM_RESAMPLES = 2000
CONFIDENCE = 0.95
NONE = (float("nan"), float("nan"))
TIE = 1e-12

Interval = tuple[float, float]
Patients = Sequence[Hashable]  # (N,) whose scan each is


def bootstrap_interval(
    figure: Callable[[np.ndarray], float],
    num_subjects: int,
    *,
    patients: Patients | None = None,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
    method: str = "bca",
) -> Interval:
    """figure(indices) is the figure over the subjects with these numbers, (n,) ints in any order, repeats among them.

    A resample whose figure is not defined (nan: no such class among its subjects) says nothing and is left out, unless over half
    of them are: then, and for fewer than two subjects, the interval is (nan, nan). Raises ValueError for an unknown method.

    >>> values = np.array([0.7, 0.8, 0.9, 0.85])
    >>> low, high = bootstrap_interval(lambda chosen: values[chosen].mean(), len(values))
    >>> bool(0.7 < low < values.mean() < high < 0.9)
    True
    """
    options = {"num_resamples": num_resamples, "confidence": confidence, "method": method}
    figures = lambda chosen: np.array([figure(chosen)])  # noqa: E731
    return bootstrap_intervals(figures, num_subjects, patients=patients, seed=seed, **options)[0]  # type: ignore[arg-type]


def bootstrap_intervals(
    figures: Callable[[np.ndarray], np.ndarray],
    num_subjects: int,
    *,
    patients: Patients | None = None,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
    method: str = "bca",
) -> list[Interval]:
    """As `bootstrap_interval`, of several figures (M,) that are found together: their M intervals, from the same resamples."""
    everyone = np.arange(num_subjects)
    found = figures(everyone)
    patient = patient_numbers(num_subjects, patients)
    num_patients = int(patient.max(initial=-1)) + 1
    if num_patients < 2:
        return [NONE] * len(found)
    scans = [np.flatnonzero(patient == i) for i in range(num_patients)]
    drawn, inverse = np.unique(np.sort(_draw(num_patients, num_resamples, seed)), axis=0, return_inverse=True)
    resampled = np.array([figures(np.concatenate([scans[i] for i in chosen])) for chosen in drawn])
    resampled = resampled[inverse.ravel()]  # of few subjects there are few different draws
    left_out = np.zeros((0, len(found)))
    if method == "bca":
        left_out = np.array([figures(everyone[patient != i]) for i in range(num_patients)])
    columns = zip(found.tolist(), resampled.T, left_out.T, strict=True)
    return [_interval(value, drawn, without, confidence, method) for value, drawn, without in columns]


def mean_interval(
    values: np.ndarray,
    *,
    patients: Patients | None = None,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
    method: str = "bca",
) -> Interval:
    """Of the mean of values (N,), or of every column of (N, M) and then over the columns; nan is no value and counts in no mean.

    The same as `bootstrap_interval` of that mean, all resamples at once.

    >>> low, high = mean_interval(np.array([0.7, 0.8, 0.9, 0.85, float("nan")]))
    >>> bool(0.7 < low < 0.8125 < high < 0.9)
    True
    """
    patient = patient_numbers(len(values), patients)
    num_patients = int(patient.max(initial=-1)) + 1
    if num_patients < 2:
        return NONE
    table = values.reshape(len(values), -1).astype(np.float64)
    times = _times_drawn(num_patients, num_resamples, seed)[:, patient]
    is_value = ~np.isnan(table)
    filled = np.where(is_value, table, 0.0)

    def means(weights: np.ndarray) -> np.ndarray:
        """(R, N) how often each subject counts -> (R,)."""
        with np.errstate(invalid="ignore"):
            return _mean_of_defined((weights @ filled) / (weights @ is_value))

    left_out = means(1.0 - np.eye(num_patients)[:, patient]) if method == "bca" else np.zeros(0)
    return _interval(float(means(np.ones((1, len(table))))[0]), means(times), left_out, confidence, method)


def patient_numbers(num_subjects: int, patients: Patients | None) -> np.ndarray:
    """(N,) 0..P-1 in the order of their first scans; without `patients` every subject is one. Raises ValueError for another N.

    >>> patient_numbers(4, ["b", "a", "b", "c"]).tolist()
    [0, 1, 0, 2]
    """
    if patients is None:
        return np.arange(num_subjects)
    if len(patients) != num_subjects:
        raise ValueError(f"{len(patients)} patients' names for {num_subjects} subjects: give one for each")
    number: dict[Hashable, int] = {}
    return np.array([number.setdefault(name, len(number)) for name in patients], dtype=np.int64)


def _draw(num_subjects: int, num_resamples: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, num_subjects, (num_resamples, num_subjects))


@lru_cache(maxsize=8)
def _times_drawn(num_subjects: int, num_resamples: int, seed: int) -> np.ndarray:
    """(R, N) float64: how often each subject is in each resample."""
    drawn = _draw(num_subjects, num_resamples, seed)
    return np.stack([np.bincount(chosen, minlength=num_subjects) for chosen in drawn]).astype(np.float64)


def _interval(found: float, resampled: np.ndarray, left_out: np.ndarray, confidence: float, method: str) -> Interval:
    if method not in ("bca", "percentile"):
        raise ValueError(f"unknown method {method!r}: use bca or percentile")
    defined = resampled[~np.isnan(resampled)]
    if np.isnan(found) or 2 * len(defined) < len(resampled):
        return NONE
    ends = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    if method == "bca":
        moved = _bca_ends(found, defined, left_out, ends)
        ends = ends if np.isnan(moved).any() else moved
    low, high = np.quantile(defined, ends)
    return float(low), float(high)


def _bca_ends(found: float, resampled: np.ndarray, left_out: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Which quantiles of the resamples to take; nan where that is not defined."""
    near = TIE * max(1.0, abs(found))  # what sums in another order differ by: equal figures stay equal
    below = ((resampled < found - near).mean() + (resampled <= found + near).mean()) / 2
    pull = left_out.mean() - left_out
    with np.errstate(all="ignore"):
        bias = ndtri(below)
        acceleration = np.sum(pull**3) / (6 * np.sum(pull**2) ** 1.5)
        shifted = bias + ndtri(ends)
        moved = ndtr(bias + shifted / (1 - acceleration * shifted))
    return moved if np.isfinite([bias, acceleration]).all() else np.full(2, np.nan)


def _mean_of_defined(table: np.ndarray) -> np.ndarray:
    """(R, M) -> (R,): the mean over the columns that are no nan."""
    is_value = ~np.isnan(table)
    with np.errstate(invalid="ignore"):
        return np.where(is_value, table, 0.0).sum(axis=1) / is_value.sum(axis=1)
