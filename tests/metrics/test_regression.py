"""Regression metrics: worked numbers, scikit-learn and scipy as the oracles."""

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from mri_ds.metrics.regression import bland_altman, mae, pearson_r, r_squared, rmse


def test_equals_scikit_learn_and_scipy():
    rng = np.random.default_rng(0)
    truth = 60 + 15 * rng.standard_normal(40)
    predicted = (0.7 * truth + 20 + 5 * rng.standard_normal(40)).astype(np.float32)
    assert mae(truth, predicted) == pytest.approx(mean_absolute_error(truth, predicted))
    assert rmse(truth, predicted) == pytest.approx(root_mean_squared_error(truth, predicted))
    assert pearson_r(truth, predicted) == pytest.approx(pearsonr(truth, predicted).statistic, abs=1e-6)


def test_worked_by_hand():
    truth, predicted = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 5.0])  # errors 1, 0, 2
    assert mae(truth, predicted) == 1.0
    assert rmse(truth, predicted) == pytest.approx((5 / 3) ** 0.5)
    assert pearson_r(truth, predicted) == pytest.approx(3 / (2 * 6) ** 0.5)  # covariance 3, sums of squares 2 and 6


def test_correlation_ignores_scale_and_offset_and_knows_sign():
    truth = np.array([3.0, 1.0, 4.0, 1.5, 9.0])
    assert pearson_r(truth, 100 - 0.1 * truth) == pytest.approx(-1)


def test_undefined_figures_are_nan():
    nothing = np.zeros(0)
    assert np.isnan([mae(nothing, nothing), rmse(nothing, nothing), pearson_r(nothing, nothing)]).all()
    assert np.isnan(pearson_r(np.array([1.0]), np.array([1.0])))
    assert np.isnan(pearson_r(np.array([1.0, 2.0]), np.array([5.0, 5.0])))  # a constant predictor


def test_unequal_lengths_are_named():
    with pytest.raises(ValueError, match=r"truth \(3,\) and prediction \(2,\)"):
        mae(np.zeros(3), np.zeros(2))


def test_r_squared_equals_scikit_learn():
    rng = np.random.default_rng(1)
    truth = rng.standard_normal(30)
    predicted = 0.5 * truth + rng.standard_normal(30)
    assert r_squared(truth, predicted) == pytest.approx(r2_score(truth, predicted))
    assert r_squared(truth, np.full(30, truth.mean())) == pytest.approx(0)
    assert np.isnan(r_squared(np.ones(3), np.arange(3.0))) and np.isnan(r_squared(np.ones(1), np.ones(1)))


def test_bland_altman_equals_their_own_example():
    """Peak flow by two meters, first readings of 17 people: Bland and Altman 1986, table 1, say -2.1 l/min and an SD of 38.8."""
    wright = [494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427]
    mini = [512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451]
    found = bland_altman(truth=np.array(mini, dtype=float), prediction=np.array(wright, dtype=float))
    assert found.bias == pytest.approx(-2.1, abs=0.05)
    assert (found.upper - found.lower) / 2 / 1.959964 == pytest.approx(38.8, abs=0.05)
    nobody, one = bland_altman(np.zeros(0), np.zeros(0)), bland_altman(np.array([1.0]), np.array([3.0]))
    assert np.isnan(nobody).all() and one.bias == 2 and np.isnan(one.upper)
