"""DeLong's test: do two scores of the same subjects have different areas under the ROC curve?

Axes: N subjects, of which m are positive and n negative.
In: is_positive (N,) booleans, scores (N,) of both.  Out: both areas, the p-value and the interval of their difference.
Where a patient has several scans, their placements vary together: their sums by patient are what varies independently, and a
patient with both positive and negative scans ties the two kinds together (Obuchowski 1997). With one scan each it is DeLong's.
Source: DeLong, DeLong and Clarke-Pearson 1988; by ranks, in O(N log N), as in Sun and Xu 2014; Obuchowski 1997, section 2.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from mri_ds.metrics.statistics import Patients, patient_numbers

NONE = 1e-12  # of a difference of areas: rounding


@dataclass(frozen=True)
class AucDifference:
    """Areas 0..1; `difference` is b less a, low and high its 95 % interval."""

    a: float
    b: float
    difference: float
    low: float
    high: float
    p: float


def delong(
    is_positive: np.ndarray,
    scores_a: np.ndarray,
    scores_b: np.ndarray,
    patients: Patients | None = None,
    level: float = 0.95,
) -> AucDifference:
    """Raises ValueError for fewer than two patients with positives, or with negatives: their spread is then unknown.

    Equal areas with no spread between them (the same ranks) give p = 1.

    >>> truth = np.array([0, 0, 0, 1, 1, 1]) > 0
    >>> result = delong(truth, np.array([1.0, 2, 3, 4, 5, 6]), np.array([1.0, 2, 4, 3, 5, 6]))
    >>> result.a, round(result.b, 4), result.p < 1
    (1.0, 0.8889, True)
    """
    patient = patient_numbers(len(is_positive), patients)
    num_positive, num_negative = (len(np.unique(patient[chosen])) for chosen in (is_positive, ~is_positive))
    if min(num_positive, num_negative) < 2:
        raise ValueError(f"{num_positive} positive and {num_negative} negative subjects: give at least two of each")
    placed = [_placements(is_positive, scores) for scores in (scores_a, scores_b)]
    area_a, area_b = (float(of_positives.mean()) for of_positives, _ in placed)
    if patient.max() + 1 == len(patient):
        of_positives, of_negatives = (np.cov(np.stack(of_kind)) for of_kind in zip(*placed, strict=True))
        covariance = of_positives / num_positive + of_negatives / num_negative
    else:
        covariance = _clustered(placed, is_positive, patient)
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    difference, deviation = area_b - area_a, max(variance, 0.0) ** 0.5
    half = float(stats.norm.ppf((1 + level) / 2)) * deviation
    p = float(2 * stats.norm.sf(abs(difference) / deviation)) if deviation > NONE else float(abs(difference) <= NONE)
    return AucDifference(area_a, area_b, difference, difference - half, difference + half, p)


def _clustered(placed: list[tuple[np.ndarray, np.ndarray]], is_positive: np.ndarray, patient: np.ndarray) -> np.ndarray:
    """(2, 2) covariance of both areas, from what each patient's placements sum up to beyond their expectation."""
    num = int(patient.max()) + 1
    of_positives, of_negatives = (
        np.stack([np.bincount(patient[kind], weights=pair[i] - pair[i].mean(), minlength=num) for pair in placed])
        for i, kind in enumerate((is_positive, ~is_positive))
    )
    m, n = int(is_positive.sum()), int((~is_positive).sum())
    with_positives, with_negatives = (len(np.unique(patient[kind])) for kind in (is_positive, ~is_positive))
    own = with_positives / (with_positives - 1) * of_positives @ of_positives.T / m**2
    others = with_negatives / (with_negatives - 1) * of_negatives @ of_negatives.T / n**2
    both = num / (num - 1) * of_positives @ of_negatives.T / (m * n)
    covariance: np.ndarray = own + others + both + both.T
    return covariance


def _placements(is_positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(m,) share of the negatives below each positive, (n,) share of the positives above each negative; a tie counts half."""
    positives, negatives = scores[is_positive], scores[~is_positive]
    among_all = stats.rankdata(np.concatenate([positives, negatives]))
    m, n = len(positives), len(negatives)
    of_positives = (among_all[:m] - stats.rankdata(positives)) / n
    of_negatives = 1 - (among_all[m:] - stats.rankdata(negatives)) / m
    return of_positives, of_negatives
