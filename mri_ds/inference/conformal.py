"""Sets and intervals that hold the truth with a chosen probability, whatever the network's errors look like.

Axes: N calibration subjects, K classes.
In: how wrong the network was on subjects that were not trained on.  Out: thresholds; `coverage` (0..1) of the subjects to come,
drawn as those were, lie within them: at least coverage, at most coverage + 1 / (N + 1).
The promise is about all subjects together, not about each stratum, and needs one subject per patient among the N.
Source: Vovk et al. 2005; Sadinle, Lei and Wasserman 2019 (sets of classes); Angelopoulos and Bates 2023, sections 1 and 2.
"""

import math

import numpy as np


def quantile(scores: np.ndarray, coverage: float) -> float:
    """The bound that a further score stays below with probability `coverage`: the ceil((N + 1) coverage)-th smallest of N.

    Infinite for too few subjects to promise anything. Raises ValueError for a coverage outside 0..1.

    >>> quantile(np.array([0.3, 0.1, 0.2, 0.4]), 0.8), quantile(np.array([0.3]), 0.8)
    (0.4, inf)
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage {coverage}: choose a number between 0 and 1, as 0.9")
    place = math.ceil(round((len(scores) + 1) * coverage, 9))  # 0.9 of 10 is 9, not 9.000000000000002
    return float(np.sort(scores)[place - 1]) if place <= len(scores) else math.inf


def class_threshold(probabilities: np.ndarray, truth: np.ndarray, coverage: float) -> float:
    """0..1: the classes of at least this probability are the set. probabilities (N, K), truth (N,).

    A set may be empty where no class is likely enough: the network knows of no subject like this one.

    >>> class_threshold(np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]]), np.array([0, 0, 0, 1]), 0.6)
    0.7
    """
    return max(0.0, -quantile(-probabilities[np.arange(len(truth)), truth], coverage))


def half_width(truth: np.ndarray, prediction: np.ndarray, coverage: float) -> float:
    """In the target's unit: the interval is prediction -+ this, all numbers where it is infinite. Both (N,)."""
    return quantile(np.abs(truth - prediction), coverage)


def volume_scale(truth_ml: np.ndarray, prediction_ml: np.ndarray, coverage: float) -> tuple[float, float]:
    """(relative, offset_ml) of `volume_interval_ml`: errors grow with the structure, and do not vanish with it. Both (N,)."""
    offset_ml = float(np.mean(prediction_ml)) if len(prediction_ml) else 0.0
    offset_ml = offset_ml or 1.0
    return quantile(np.abs(truth_ml - prediction_ml) / (prediction_ml + offset_ml), coverage), offset_ml


def volume_interval_ml(prediction_ml: float, relative: float, offset_ml: float) -> tuple[float, float]:
    """Low and high, mL.

    >>> volume_interval_ml(3.0, relative=0.25, offset_ml=1.0)
    (2.0, 4.0)
    """
    half = relative * (prediction_ml + offset_ml)
    return max(0.0, prediction_ml - half), prediction_ml + half


def region_score(probability: np.ndarray, share: float) -> float:
    """Of one subject: the largest threshold at which the region {probability >= threshold} holds `share` of a structure's voxels.

    probability (n,) of the structure's class at its n true voxels.

    >>> region_score(np.array([0.9, 0.2, 0.8, 0.7]), share=0.75)
    0.7
    """
    return float(np.sort(probability)[::-1][math.ceil(round(share * len(probability), 9)) - 1])


def region_threshold(scores: np.ndarray, coverage: float) -> float:
    """0..1: with probability `coverage` the region of at least this probability holds the share that the (N,) scores are of."""
    return max(0.0, -quantile(-scores, coverage))
