"""Regression metrics: worked numbers, scikit-learn and scipy as the oracles."""

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import mean_absolute_error, root_mean_squared_error

from mri_ds.metrics.regression import mae, pearson_r, rmse


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
