"""Temperatures against scipy's optimiser; they recover what was done to the logits, and the calibration error falls."""

import numpy as np
import pytest
from scipy import optimize, special, stats

from mri_ds.inference.temperature import HIGHEST, LOWEST, fit_spread, fit_temperature, nll


def drawn(seed: int, num: int, num_classes: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax is the truth's distribution, and then `scale` times as large."""
    dice = np.random.default_rng(seed)
    logits = dice.normal(0, 2, (num, num_classes))
    chances = special.softmax(logits, axis=1)
    truth = (dice.uniform(size=(num, 1)) > chances.cumsum(axis=1)).sum(axis=1)
    return scale * logits, truth


@pytest.mark.parametrize("seed, num, num_classes, scale", [(0, 40, 2, 3.0), (1, 300, 5, 0.4), (2, 2000, 3, 1.0), (3, 25, 4, 8.0)])
def test_the_optimum_is_scipy_s(seed, num, num_classes, scale):
    logits, truth = drawn(seed, num, num_classes, scale)

    def loss(log_temperature: float) -> float:
        p = special.log_softmax(logits / np.exp(log_temperature), axis=1)
        return -p[np.arange(num), truth].mean()

    found = optimize.minimize_scalar(loss, bounds=(np.log(LOWEST), np.log(HIGHEST)), method="bounded", options={"xatol": 1e-9})
    temperature = fit_temperature(logits, truth)
    assert temperature == pytest.approx(np.exp(found.x), rel=1e-4)
    assert nll(logits, truth, temperature) == pytest.approx(found.fun, abs=1e-10)
    assert nll(logits, truth, temperature) <= nll(logits, truth) + 1e-12


def test_it_undoes_what_was_done():
    for scale in (0.5, 1.0, 3.0):
        assert fit_temperature(*drawn(7, 20_000, 3, scale)) == pytest.approx(scale, rel=0.05)


def calibration_error(logits: np.ndarray, truth: np.ndarray) -> float:
    """Of the chosen class, in 15 bins of equal width: mean distance of confidence and accuracy, by share of cases."""
    p = special.softmax(logits, axis=1)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == truth
    total, _, place = stats.binned_statistic(confidence, confidence, "sum", bins=15, range=(0, 1))
    hits = np.bincount(place, weights=right, minlength=17)[1:16]
    return float(np.abs(total - hits).sum() / len(truth))


@pytest.mark.parametrize("scale", [3.0, 0.4])
def test_the_calibration_error_falls_on_new_cases(scale):
    fit, new = drawn(8, 500, 3, scale), drawn(9, 5000, 3, scale)
    temperature = fit_temperature(*fit)
    before, after = calibration_error(*new), calibration_error(new[0] / temperature, new[1])
    assert after < 0.4 * before and after < 0.03
    assert (new[0].argmax(axis=1) == (new[0] / temperature).argmax(axis=1)).all()


def test_edges():
    assert fit_temperature(np.zeros((0, 3)), np.zeros(0, dtype=int)) == 1.0
    all_right = fit_temperature(5 * np.eye(3), np.arange(3))
    assert LOWEST <= all_right < 0.2 and nll(5 * np.eye(3), np.arange(3), all_right) < 1e-12  # surer makes no difference
    assert fit_temperature(5 * np.eye(3), np.array([1, 2, 0])) == pytest.approx(HIGHEST, rel=1e-3)  # all wrong


def test_spread_is_the_most_likely():
    dice = np.random.default_rng(0)
    deviations = dice.uniform(1, 4, 500)
    errors = dice.normal(0, 1.7 * deviations)
    spread = fit_spread(errors, deviations)
    found = optimize.minimize_scalar(lambda s: -stats.norm.logpdf(errors, scale=s * deviations).mean(), bounds=(0.1, 10))
    assert spread == pytest.approx(found.x, rel=1e-4) and spread == pytest.approx(1.7, rel=0.1)
    assert fit_spread(np.zeros(0), np.zeros(0)) == 1.0
