"""Bootstrap intervals: scipy draws the same resamples from the same generator, so that the two are equal digit by digit."""

import numpy as np
import pytest
from scipy import stats

from mri_ds.metrics.regression import pearson_r
from mri_ds.metrics.statistics import bootstrap_interval, mean_interval


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_equals_scipy(method):
    values = np.random.default_rng(1).beta(8, 2, 23)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=2000, method=method, rng=np.random.default_rng(5), vectorized=True, axis=-1
    ).confidence_interval
    assert mean_interval(values, seed=5, method=method) == pytest.approx(tuple(theirs), abs=1e-12)
    of_any_figure = bootstrap_interval(lambda chosen: values[chosen].mean(), len(values), seed=5, method=method)
    assert of_any_figure == pytest.approx(tuple(theirs), abs=1e-12)


def test_a_correlation_equals_scipy():
    rng = np.random.default_rng(2)
    x = rng.standard_normal(30)
    y = x + rng.standard_normal(30)
    order = np.arange(30)  # scipy draws for each sample apart unless they are drawn as one: of numbers of subjects

    def figure(chosen: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.apply_along_axis(lambda one: pearson_r(x[one], y[one]), axis, chosen)

    theirs = stats.bootstrap((order,), figure, n_resamples=500, rng=np.random.default_rng(0)).confidence_interval
    ours = bootstrap_interval(lambda chosen: pearson_r(x[chosen], y[chosen]), 30, num_resamples=500)
    assert ours == pytest.approx(tuple(theirs), abs=1e-12)


def test_means_over_columns_leave_out_what_is_no_value():
    table = np.random.default_rng(3).random((15, 3))
    table[::2, 1] = np.nan
    table[:, 2] = np.nan

    def figure(chosen: np.ndarray) -> float:
        return float(np.mean([np.nanmean(table[chosen, 0]), np.nanmean(table[chosen, 1])]))

    assert mean_interval(table) == pytest.approx(bootstrap_interval(figure, 15), abs=1e-12)


def test_it_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(4)
    held = [low <= 0.8 <= high for low, high in (mean_interval(rng.beta(8, 2, 30), num_resamples=300) for _ in range(300))]
    assert 0.90 <= np.mean(held) <= 0.98  # 95 % less what 30 subjects and luck take


def test_where_there_is_nothing_to_say():
    nothing = (pytest.approx(np.nan, nan_ok=True),) * 2
    assert mean_interval(np.array([0.5])) == nothing and bootstrap_interval(lambda chosen: 1.0, 1) == nothing
    assert mean_interval(np.full(9, np.nan)) == nothing
    assert mean_interval(np.full(9, 0.7)) == (pytest.approx(0.7), pytest.approx(0.7))  # no spread: BCa has no answer
    rare = np.array([0.9] + [np.nan] * 9)  # defined in 65 % of the resamples, and nowhere without its one subject
    assert mean_interval(rare) == (0.9, 0.9)
    assert mean_interval(np.array([0.9] + [np.nan] * 9)) == mean_interval(rare, seed=0)
    with pytest.raises(ValueError, match="unknown method"):
        mean_interval(np.arange(5.0), method="magic")
