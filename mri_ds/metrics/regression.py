"""Errors of predicted numbers, in the unit of the target, and their correlation.

In: truth and prediction (N,).  Out: floats; nan where a figure is not defined.
Source: Bland and Altman 1986 (limits of agreement).
"""

from typing import NamedTuple

import numpy as np

NORMAL_95 = 1.959963984540054  # standard deviations either side that hold 95 % of a normal distribution


class Agreement(NamedTuple):
    """Bland-Altman, in the target's unit: mean of prediction minus truth, and what 95 % of differences lie between."""

    bias: float
    lower: float
    upper: float


def mae(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Mean absolute error, in the target's unit; nan without subjects.

    >>> mae(np.array([10.0, 20.0]), np.array([11.0, 17.0]))
    2.0
    """
    return float(np.abs(_errors(truth, prediction)).mean()) if len(truth) else float("nan")


def rmse(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Root of the mean squared error, in the target's unit; nan without subjects.

    >>> rmse(np.array([0.0, 0.0]), np.array([3.0, 4.0])) == 12.5**0.5
    True
    """
    return float(np.sqrt(np.square(_errors(truth, prediction)).mean())) if len(truth) else float("nan")


def pearson_r(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Pearson's correlation, -1..1; nan for fewer than two subjects or when either side does not vary.

    >>> round(pearson_r(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])), 12)
    1.0
    """
    _errors(truth, prediction)
    if len(truth) < 2 or np.ptp(truth) == 0 or np.ptp(prediction) == 0:
        return float("nan")
    x, y = truth - np.mean(truth), prediction - np.mean(prediction)
    return float(np.clip(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)), -1, 1))


def r_squared(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Share of the truth's variance that is explained, up to 1; 0 for its own mean, below for worse.

    nan for fewer than two subjects, or a truth that does not vary.

    >>> r_squared(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0]))
    0.0
    """
    errors = _errors(truth, prediction)
    if len(truth) < 2 or np.ptp(truth) == 0:
        return float("nan")
    return float(1 - errors @ errors / np.square(truth - np.mean(truth)).sum())


def bland_altman(truth: np.ndarray, prediction: np.ndarray) -> Agreement:
    """Bias and limits: mean difference and 1.96 sample standard deviations either side; limits are nan for one subject.

    >>> bland_altman(np.array([10.0, 20.0, 30.0]), np.array([11.0, 22.0, 33.0]))  # doctest: +ELLIPSIS
    Agreement(bias=2.0, lower=0.040..., upper=3.959...)
    """
    errors = _errors(truth, prediction)
    if not len(errors):
        return Agreement(float("nan"), float("nan"), float("nan"))
    bias = float(errors.mean())
    reach = NORMAL_95 * float(errors.std(ddof=1)) if len(errors) > 1 else float("nan")
    return Agreement(bias, bias - reach, bias + reach)


def _errors(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    if truth.shape != prediction.shape or truth.ndim != 1:
        raise ValueError(f"truth {truth.shape} and prediction {prediction.shape}: give two (N,) arrays")
    return np.asarray(prediction, dtype=np.float64) - np.asarray(truth, dtype=np.float64)
