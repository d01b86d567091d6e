"""Errors of predicted numbers, in the unit of the target, and their correlation.

In: truth and prediction (N,).  Out: floats; nan where a figure is not defined.
"""

import numpy as np


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


def _errors(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    if truth.shape != prediction.shape or truth.ndim != 1:
        raise ValueError(f"truth {truth.shape} and prediction {prediction.shape}: give two (N,) arrays")
    return np.asarray(prediction, dtype=np.float64) - np.asarray(truth, dtype=np.float64)
