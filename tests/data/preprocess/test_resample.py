"""Interpolation against scipy (all borders included), torch and worked numbers; labels class by class."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from mri_ds.data.preprocess.resample import axis_weights, resample, resample_labels

SHAPES = [((9, 11, 8), (14, 11, 20)), ((20, 6, 7), (14, 9, 5)), ((5, 4, 3), (7, 9, 13)), ((2, 1, 6), (5, 3, 6))]


def noise(shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def by_scipy(volume: np.ndarray, shape, order: int) -> np.ndarray:
    """scipy's own zoom; a volume of doubles, the border repeated."""
    zoom = [m / n for n, m in zip(volume.shape, shape)]
    return ndimage.zoom(volume.astype(np.float64), zoom, order=order, mode="nearest", grid_mode=True)


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize(("old", "new"), SHAPES)
def test_linear_and_cubic_are_scipys_up_to_the_border(old, new, order):
    image = noise((2, *old))
    result = resample(torch.from_numpy(image), new, (order,) * 3)
    expected = np.stack([by_scipy(channel, new, order) for channel in image])
    assert result.shape == (2, *new) and np.abs(result.numpy() - expected).max() < 1e-5


@given(n=st.integers(1, 40), share=st.floats(0.7, 4), order=st.sampled_from([1, 3]), seed=st.integers(0, 9))
def test_any_length_agrees_with_scipy(n, share, order, seed):
    m = max(1, round(n * share))
    line = noise(n, seed)
    if n > 1.5 * m or n == m:  # averaged first, tested below; or the very same
        return
    assert np.abs(axis_weights(n, m, order).numpy() @ line - by_scipy(line, (m,), order)).max() < 1e-5


@pytest.mark.parametrize(("n", "m"), [(5, 15), (5, 12), (7, 7 * 4), (10, 7), (4, 3), (3, 2)])
def test_nearest_is_the_voxel_whose_extent_holds_the_centre(n, m):
    """scipy's order 0; a centre on a border (n 4, m 3: voxel 1's lies at 1.5) goes to the upper voxel, as scipy rounds."""
    line = noise(n)
    centres = (np.arange(m) + 0.5) * n / m - 0.5
    expected = ndimage.map_coordinates(line, [centres], order=0, mode="nearest")
    assert np.array_equal(axis_weights(n, m, 0).numpy() @ line, expected)


def test_orders_may_differ_between_axes():
    image = noise((6, 7, 8))
    result = resample(torch.from_numpy(image)[None], (9, 14, 17), (0, 1, 3))[0].numpy()
    expected = ndimage.zoom(image.astype(np.float64), (1.5, 1, 1), order=0, mode="nearest", grid_mode=True)
    expected = ndimage.zoom(expected, (1, 2, 1), order=1, mode="nearest", grid_mode=True)
    expected = ndimage.zoom(expected, (1, 1, 17 / 8), order=3, mode="nearest", grid_mode=True)
    assert np.abs(result - expected).max() < 1e-5


def test_linear_is_torchs_too():
    image = torch.from_numpy(noise((2, 6, 7, 8)))
    expected = F.interpolate(image[None], size=(12, 8, 6), mode="trilinear", align_corners=False)[0]
    assert (resample(image, (12, 8, 6)) - expected).abs().max() < 1e-6


@pytest.mark.parametrize("order", [0, 1, 3])
def test_averaging_by_an_odd_factor_is_the_mean_of_each_block(order):
    image = noise((9, 6, 5))
    result = resample(torch.from_numpy(image)[None], (3, 6, 5), (order,) * 3)[0].numpy()
    assert np.allclose(result, image.reshape(3, 3, 6, 5).mean(axis=1), atol=1e-6)


@pytest.mark.parametrize(("old", "new"), [(60, 30), (60, 24), (45, 9), (33, 20)])
def test_coarse_axes_are_averaged_first(old, new):
    """By the box of one new voxel, the border repeated: what scipy's filter does where that is an odd number of old ones."""
    line = noise(old)
    width = old / new
    if width % 2 == 1:
        averaged = ndimage.uniform_filter1d(line.astype(np.float64), size=int(width), mode="nearest")
    else:
        integral = np.concatenate([np.full(50, line[0]), line, np.full(50, line[-1])]).astype(np.float64).cumsum()
        edges = np.arange(len(integral) + 1) - 50.5
        area = np.concatenate([[0], integral])
        centres = np.arange(old)
        averaged = (np.interp(centres + width / 2, edges, area) - np.interp(centres - width / 2, edges, area)) / width
    assert np.allclose(axis_weights(old, new, 1).numpy() @ line, by_scipy(averaged, (new,), 1), atol=1e-5)
    assert np.allclose(axis_weights(old, new, 3).numpy() @ line, by_scipy(averaged, (new,), 3), atol=1e-5)


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize(("n", "m"), [(1, 4), (4, 1), (7, 12), (12, 7), (50, 11)])
def test_every_new_voxel_is_a_weighted_mean(n, m, order):
    weights = axis_weights(n, m, order)
    assert weights.shape == (m, n) and torch.allclose(weights.sum(dim=1), torch.ones(m), atol=1e-5)
    assert order == 3 or weights.min() >= 0


@pytest.mark.parametrize("orders", [(1, 1, 1), (1, 0, 1)])
@pytest.mark.parametrize("shape", [(16, 14, 15), (5, 9, 4)])
def test_labels_are_the_class_with_the_largest_share(shape, orders):
    """Each class's mask is interpolated as an image and the largest wins: done here for all classes at once."""
    labels = np.random.default_rng(0).choice([0, 2, 3, 40], size=(8, 7, 6)).astype(np.int16)
    labels[:4, :3] = 40
    result = resample_labels(labels, shape, orders)
    masks = torch.from_numpy(np.stack([labels == value for value in (0, 2, 3, 40)])).float()
    shares = resample(masks, shape, orders).numpy()
    clear = np.sort(shares, axis=0)[-2] < shares.max(axis=0) - 1e-4
    assert result.dtype == np.int16 and clear.mean() > 0.5
    assert np.array_equal(result[clear], np.array([0, 2, 3, 40])[shares.argmax(axis=0)][clear])
    chosen = np.take_along_axis(shares, np.searchsorted([0, 2, 3, 40], result)[None], axis=0)[0]
    assert np.allclose(chosen, shares.max(axis=0), atol=1e-5)


def test_labels_never_get_a_value_between_two_classes():
    label = np.zeros((10, 10, 10), dtype=np.int16)
    label[5:] = 9
    assert set(np.unique(resample_labels(label, (14, 14, 14)))) == {0, 9}


def test_a_tie_is_won_by_the_lowest_class():
    """Between a voxel of 7 and one of 3, and in a row without background at all."""
    label = np.array([7, 3], dtype=np.int16).reshape(2, 1, 1)
    assert resample_labels(label, (3, 1, 1)).ravel().tolist() == [7, 3, 3]
    assert resample_labels(label[::-1].copy(), (3, 1, 1)).ravel().tolist() == [3, 3, 7]


def test_what_has_its_shape_already_stays():
    image = torch.from_numpy(noise((1, 4, 5, 6)))
    label = np.arange(120, dtype=np.int16).reshape(4, 5, 6)
    assert resample(image, (4, 5, 6)) is image
    copy = resample_labels(label, (4, 5, 6))
    assert np.array_equal(copy, label) and not np.shares_memory(copy, label)
