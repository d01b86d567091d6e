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


def test_one_scan_of_each_patient_is_as_without_patients():
    table, names = np.random.default_rng(6).random((14, 2)), [f"p{i}" for i in range(14)]
    assert mean_interval(table, patients=names) == mean_interval(table)

    def figure(chosen: np.ndarray) -> float:
        return float(np.median(table[chosen]))

    assert bootstrap_interval(figure, 14, patients=names) == bootstrap_interval(figure, 14)


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_patients_are_drawn_with_all_their_scans_as_scipy_draws_them(method):
    """scipy draws numbers of patients; the figure gathers their scans, of which there are one to four."""
    rng = np.random.default_rng(7)
    patients = rng.permutation(np.repeat(np.arange(12), rng.integers(1, 5, 12)))
    values = rng.normal(size=12)[patients] + 0.3 * rng.normal(size=len(patients))
    order = list(dict.fromkeys(patients.tolist()))

    def figure(chosen: np.ndarray, axis: int = -1) -> np.ndarray:
        def one(row: np.ndarray) -> float:
            return float(np.concatenate([values[patients == order[i]] for i in row]).mean())

        return np.apply_along_axis(one, axis, chosen)

    theirs = stats.bootstrap((np.arange(12),), figure, n_resamples=400, method=method, rng=np.random.default_rng(0))
    given = {"patients": patients.tolist(), "num_resamples": 400, "method": method}
    assert mean_interval(values, **given) == pytest.approx(tuple(theirs.confidence_interval), abs=1e-12)
    of_any = bootstrap_interval(lambda chosen: values[chosen].mean(), len(values), **given)
    assert of_any == pytest.approx(tuple(theirs.confidence_interval), abs=1e-12)


def test_repeated_scans_do_not_narrow_the_interval():
    """Of 25 patients, each scanned four times: patients' intervals hold the truth, those of 100 subjects far too rarely."""
    rng, held = np.random.default_rng(8), {"patients": 0, "scans": 0}
    patients = np.repeat(np.arange(25), 4).tolist()
    for _ in range(300):
        values = rng.normal(size=25)[patients] + 0.3 * rng.normal(size=100)
        for kind, given in (("patients", patients), ("scans", None)):
            low, high = mean_interval(values, patients=given, num_resamples=300)
            held[kind] += low <= 0 <= high
    assert 0.89 <= held["patients"] / 300 <= 0.98 and held["scans"] / 300 < 0.75
    with pytest.raises(ValueError, match="3 patients' names for 4 subjects"):
        mean_interval(np.arange(4.0), patients=["a", "b", "c"])
    assert np.isnan(mean_interval(np.arange(4.0), patients=["a"] * 4)).all()  # one patient: nobody knows


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
