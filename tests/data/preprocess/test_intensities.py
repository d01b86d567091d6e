"""Clip, mean and deviation, held against numpy and scipy; never a NaN, never a volume of doubles."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mri_ds.config import Intensity
from mri_ds.data.preprocess import border_minimum, measure, normalize


def test_normalize_agrees_with_numpy_and_scipy_over_the_whole_image():
    image = np.random.default_rng(0).normal(300, 40, size=(2, 12, 13, 14)).astype(np.float32)
    result = normalize(image, (1.0, 99.0))
    for channel, got in zip(image.astype(np.float64), result):
        expected = stats.zscore(np.clip(channel, *np.percentile(channel, (1, 99))), axis=None)
        assert np.allclose(got, expected, atol=1e-5)
    assert result.dtype == np.float32


def test_normalize_leaves_a_zero_background_out():
    rng = np.random.default_rng(0)
    image = np.zeros((1, 10, 10, 10), dtype=np.float32)
    image[0, 2:8] = rng.normal(500, 50, size=(6, 10, 10))
    result = normalize(image, (0.5, 99.5))[0]
    body = image[0, 2:8].astype(np.float64)
    low, high = np.percentile(body, (0.5, 99.5))
    assert np.allclose(result[2:8], stats.zscore(np.clip(body, low, high), axis=None), atol=1e-5)
    assert (result[:2] == result[2:8].min()).all(), "the background is clipped to the lowest value of the body"


def test_a_few_zeros_are_no_background():
    image = np.random.default_rng(0).normal(0, 1, size=(1, 10, 10, 10)).astype(np.float32)
    image.ravel()[:90] = 0  # 9 %
    expected = stats.zscore(np.clip(image[0].astype(float), *np.percentile(image[0], (0.5, 99.5))), axis=None)
    assert np.allclose(normalize(image)[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((1, 4, 4, 4)),
        np.full((1, 4, 4, 4), 7.0),
        np.full((1, 4, 4, 4), 1e30) * np.linspace(-1, 1, 64).reshape(1, 4, 4, 4),
        np.where(np.arange(64).reshape(1, 4, 4, 4) == 5, np.nan, np.arange(64).reshape(1, 4, 4, 4)),
        np.where(np.arange(64).reshape(1, 4, 4, 4) == 5, np.inf, np.arange(64).reshape(1, 4, 4, 4)),
        np.where(np.arange(64).reshape(1, 4, 4, 4) == 5, 3.0, 0.0),
    ],
    ids=["zero", "constant", "huge", "nan", "inf", "one voxel"],
)
def test_normalize_is_always_finite(image):
    result = normalize(image.astype(np.float32))
    assert np.isfinite(result).all() and np.abs(result).max() < 100


@given(
    size=st.integers(2, 400),
    percentiles=st.tuples(st.floats(0, 30), st.floats(70, 100)),
    offset=st.sampled_from([0.0, 1e3, -1e5]),
    seed=st.integers(0, 99),
)
def test_measured_numbers_are_numpys(size, percentiles, offset, seed):
    channel = (np.random.default_rng(seed).normal(offset, 30, size=(1, 1, size))).astype(np.float32)
    low, high = np.percentile(channel.astype(np.float64), percentiles)
    clipped = channel.astype(np.float64).clip(low, high)
    got = measure(channel, percentiles)
    assert (got.low, got.high) == pytest.approx((low, high), rel=1e-9, abs=1e-9)
    assert (got.mean, got.std) == pytest.approx((clipped.mean(), clipped.std()), rel=1e-9, abs=1e-9)


def test_large_channels_are_summed_in_blocks():
    """Over a block of 2 ** 20 voxels, far from zero: nothing is lost to float32."""
    channel = np.random.default_rng(0).normal(1e4, 3, size=(130, 100, 100)).astype(np.float32)
    got, clipped = measure(channel, (1, 99)), channel.astype(np.float64).clip(*np.percentile(channel.astype(np.float64), (1, 99)))
    assert (got.mean, got.std) == pytest.approx((clipped.mean(), clipped.std()), rel=1e-9)


def test_given_numbers_are_used_instead_and_differences_between_subjects_survive():
    """Two maps of one scale: the second is 100 ms longer throughout, and still is after the same numbers are applied to both."""
    scale = [Intensity(low=500, high=2500, mean=1200, std=400)]
    first = np.random.default_rng(0).uniform(800, 1600, size=(1, 6, 6, 6)).astype(np.float32)
    one, two = (normalize(image, (0.5, 99.5), scale) for image in (first, first + 100))
    assert np.allclose(one, (first - 1200) / 400, atol=1e-6) and np.allclose(two - one, 0.25, atol=1e-5)
    assert np.allclose(normalize(first * 0, (0.5, 99.5), scale), (500 - 1200) / 400), "clipped"
    by_itself = normalize(first + 100) - normalize(first)
    assert np.abs(by_itself).max() < 1e-3, "by its own numbers the difference is gone"


def test_each_channel_has_numbers_of_its_own():
    image = np.random.default_rng(0).normal(size=(2, 5, 5, 5)).astype(np.float32)
    scales = [Intensity(low=-9, high=9, mean=0, std=1), Intensity(low=-9, high=9, mean=1, std=2)]
    assert np.allclose(normalize(image, intensities=scales), [image[0], (image[1] - 1) / 2], atol=1e-6)


def test_the_input_is_left_as_it_was():
    image = np.random.default_rng(0).normal(size=(2, 9, 9, 9)).astype(np.float32)
    before = image.copy()
    normalize(image)
    measure(image[0])
    assert np.array_equal(image, before)


def test_border_minimum_looks_at_the_faces_only():
    image = np.ones((2, 4, 5, 6), dtype=np.float32)
    image[:, 2, 2, 2] = -9
    assert border_minimum(image) == 1.0
    image[1, 0, 3, 3] = -2
    assert border_minimum(image) == -2.0
