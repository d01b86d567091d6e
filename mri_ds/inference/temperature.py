"""One number that makes a network as sure as it is right: its logits are divided by it. The chosen class does not change.

Axes: N cases (subjects or voxels), K classes.
In: logits (N, K) and true classes (N,) of cases that were not trained on.  Out: the temperature, above 1 for a network that is
too sure of itself.
Source: Guo et al. 2017, section 4.2. The negative log likelihood is convex in 1 / temperature, so there is one best value.
"""

import numpy as np
from scipy.special import logsumexp, softmax

LOWEST, HIGHEST = 0.05, 20.0  # where all cases are right, 0 would be best
ROUNDS = 100
TOLERANCE = 1e-10


def fit_temperature(logits: np.ndarray, truth: np.ndarray) -> float:
    """The temperature of least negative log likelihood, 0.05..20; 1 without cases.

    >>> round(fit_temperature(np.array([[2.0, 0.0]] * 4), np.array([0, 0, 0, 1])), 4)  # 3 of 4: log(3) = 2 / T
    1.8205
    """
    if not len(truth):
        return 1.0
    logits = np.asarray(logits, dtype=np.float64)
    low, high = 1 / HIGHEST, 1 / LOWEST  # of b = 1 / T; Newton's steps stay between them, and they close in
    b = 1.0
    for _ in range(ROUNDS):
        slope, curvature = _slope(logits, truth, b)
        low, high = (b, high) if slope < 0 else (low, b)
        step = slope / curvature if curvature > 0 else np.inf
        following = b - step if low < b - step < high else (low + high) / 2
        if abs(following - b) <= TOLERANCE * b:
            break
        b = following
    return float(1 / b)


def nll(logits: np.ndarray, truth: np.ndarray, temperature: float = 1.0) -> float:
    """Mean negative log likelihood of the true classes, in nats; nan without cases."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    return float((logsumexp(scaled, axis=1) - scaled[np.arange(len(truth)), truth]).mean()) if len(truth) else float("nan")


def fit_spread(errors: np.ndarray, deviations: np.ndarray) -> float:
    """The same for a regression that tells its own standard deviation: what that must be multiplied by, > 0; 1 without cases.

    errors and deviations (N,) in one unit. The Gaussian likelihood is greatest at the root mean square of their quotient.
    """
    return float(np.sqrt(np.mean((errors / deviations) ** 2))) or 1.0 if len(errors) else 1.0


def _slope(logits: np.ndarray, truth: np.ndarray, b: float) -> tuple[float, float]:
    """First and second derivative of the mean negative log likelihood by b: expected less true logit, and its variance."""
    p = softmax(b * logits, axis=1)
    expected = (p * logits).sum(axis=1)
    variance = (p * (logits - expected[:, None]) ** 2).sum(axis=1)
    return float((expected - logits[np.arange(len(truth)), truth]).mean()), float(variance.mean())
