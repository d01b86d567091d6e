"""Percentiles and moments, held against numpy; merging in any grouping; no digits lost far from zero."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mri_ds.data.distribution import Distribution, Moments, merge

SETS = {
    "floats": lambda rng: rng.normal(100, 20, 3001).astype(np.float32),
    "whole floats": lambda rng: rng.integers(-40, 3000, 3001).astype(np.float32),
    "int16 from end to end": lambda rng: np.append(rng.integers(-32768, 32768, 3000), [-32768, 32767]).astype(np.int16),
    "uint8": lambda rng: rng.integers(0, 256, 999).astype(np.uint8),
    "large whole floats": lambda rng: (rng.integers(0, 2**24, 999)).astype(np.float32),
    "one value": lambda rng: np.full(7, 3.5, np.float32),
    "one voxel": lambda rng: np.array([-3], np.int16),
}


@pytest.mark.parametrize("name", SETS)
def test_percentiles_and_clipped_moments_are_numpys(name):
    values = SETS[name](np.random.default_rng(0))
    told = Distribution(values.reshape(1, -1))
    wanted = [0, 0.5, 1, 33.3, 50, 99.5, 100]
    assert told.percentiles(wanted) == pytest.approx(np.percentile(values.astype(np.float64), wanted), rel=1e-12)
    for low, high in (np.percentile(values.astype(np.float64), (p, 100 - p)) for p in (0, 0.5, 10)):
        clipped = np.clip(values.astype(np.float64), low, high)
        moments = told.clipped_moments(low, high)
        assert moments.count == len(values)
        assert moments.mean == pytest.approx(clipped.mean(), rel=1e-12, abs=1e-12)
        assert moments.std == pytest.approx(clipped.std(), rel=1e-9, abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(
    arrays(np.float64, st.integers(1, 40), elements=st.floats(-1e6, 1e6)),
    st.lists(st.integers(0, 40), max_size=4),
)
def test_merged_parts_are_the_whole(values, cuts):
    parts = np.split(values, sorted(min(cut, len(values)) for cut in cuts))
    total = merge(Moments(len(p), float(p.mean()), float(np.square(p - p.mean()).sum())) if len(p) else Moments() for p in parts)
    assert total.count == len(values)
    assert total.mean == pytest.approx(values.mean(), rel=1e-9, abs=1e-6)
    assert total.std == pytest.approx(values.std(), rel=1e-6, abs=1e-4)


def test_a_large_mean_costs_no_digits():
    """1e9 + 0, 1, 2, 3, in two parts: variance 1.25. The textbook's mean of squares minus squared mean gives 0 here."""
    parts = [Distribution(np.array([1e9, 1e9 + 1])).moments(), Distribution(np.array([1e9 + 2, 1e9 + 3])).moments()]
    assert merge(parts).std ** 2 == pytest.approx(1.25, rel=1e-9)
    values = np.array([1e9, 1e9 + 1, 1e9 + 2, 1e9 + 3], dtype=np.float32)
    assert np.square(values).mean() - values.mean() ** 2 != pytest.approx(1.25, rel=0.5)


def test_nothing_has_no_moments():
    assert Distribution(np.zeros(0, np.float32)).moments() == Moments() and Moments().std == 0.0
