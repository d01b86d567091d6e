"""Crop, rotation, scaling and elastic motion: worked positions, exactness, an oracle from scipy."""

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from scipy.ndimage import map_coordinates

from mri_ds.augment.spatial import (
    crop,
    draw_control_points,
    draw_matrix,
    resample,
    smooth_field,
    source_positions,
    spline_weights,
)

RIGHT_ANGLE = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # the window's axis 0 shows the source's axis 1


def volume(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def no_labels(image: torch.Tensor) -> torch.Tensor:
    return image.new_zeros((0, *image.shape[1:]))


def test_a_window_inside_the_volume_is_a_plain_copy():
    image = volume(2, 6, 7, 8)
    window = crop(image, (1, 2, 3), (4, 3, 2), fill=9.0)
    assert torch.equal(window, image[:, 1:5, 2:5, 3:5])
    window.zero_()
    assert image.min() > 0, "the crop shares memory with its source"


@pytest.mark.parametrize("start", [(-2, -1, 0), (3, 3, 3), (-20, 0, 0), (20, 0, 0)])
def test_a_window_that_leaves_the_volume_is_filled(start):
    image = volume(1, 5, 5, 5)
    window = crop(image, start, (4, 4, 4), fill=-7.0)
    padded = np.pad(image.numpy(), [(0, 0)] + [(30, 30)] * 3, constant_values=-7.0)
    d, h, w = (s + 30 for s in start)
    assert np.array_equal(window.numpy(), padded[:, d : d + 4, h : h + 4, w : w + 4])


def test_without_motion_every_window_voxel_shows_the_source_voxel_under_it():
    where = source_positions(start=(3, -1, 0), shape=(2, 3, 4), spacing_mm=(1, 2, 5), matrix=None, control_mm=None)
    assert where[:, 0, 0, 0].tolist() == [3, -1, 0]
    assert where[:, 1, 2, 3].tolist() == [4, 1, 3]


def test_rotation_happens_in_millimetres():
    """Voxels of 1 x 2 mm, a quarter turn: 4 voxels along axis 0 (4 mm) become 2 voxels along axis 1 (4 mm)."""
    kwargs = {"start": (0, 0, 0), "shape": (9, 9, 1), "spacing_mm": (1, 2, 1), "control_mm": None}
    where = source_positions(matrix=RIGHT_ANGLE, **kwargs)
    assert where[:, 4, 4, 0].tolist() == [4, 4, 0], "the centre moved"
    assert where[:, 8, 4, 0].tolist() == pytest.approx([4, 6, 0])
    assert where[:, 4, 6, 0].tolist() == pytest.approx([0, 4, 0])


def test_identity_matrix_returns_the_image():
    image, labels = volume(2, 6, 7, 8), torch.randint(0, 5, (1, 6, 7, 8), dtype=torch.int16)
    moved, moved_labels = resample(
        image, labels, start=(0, 0, 0), shape=(6, 7, 8), spacing_mm=(1, 2, 3), matrix=np.eye(3), fill=0.3
    )
    assert torch.allclose(moved, image, atol=1e-5)
    assert torch.equal(moved_labels, labels)


def test_a_quarter_turn_is_an_exact_transposition():
    image = volume(1, 7, 7, 3)
    moved, _ = resample(image, no_labels(image), start=(0, 0, 0), shape=(7, 7, 3), spacing_mm=(1, 1, 1), matrix=RIGHT_ANGLE)
    assert torch.allclose(moved, torch.rot90(image, k=-1, dims=(1, 2)), atol=1e-5)


@pytest.mark.parametrize("start", [(0, 0, 0), (4, 2, -3)])
def test_resampling_agrees_with_scipy(start):
    """The same positions read by scipy; image linear, label nearest; window smaller than the source, partly outside it."""
    rng = np.random.default_rng(1)
    spacing, shape = (1.0, 1.5, 2.0), (9, 8, 7)
    image, labels = volume(2, 12, 11, 10), torch.randint(0, 4, (1, 12, 11, 10), dtype=torch.int16)
    matrix = draw_matrix(rng, rotate_deg=20, scale=0.2)
    control = draw_control_points(rng, shape=shape, spacing_mm=spacing, elastic_mm=2.0, grid_mm=6.0)
    kwargs = {"start": start, "shape": shape, "spacing_mm": spacing, "matrix": matrix, "control_mm": control}
    moved, moved_labels = resample(image, labels, fill=-2.0, **kwargs)
    where = source_positions(**kwargs).double().numpy()
    for channel in range(2):
        padded = np.pad(image[channel].numpy().astype(float), 3, constant_values=-2.0)
        expected = map_coordinates(padded, where + 3, order=1, mode="constant", cval=-2.0)
        assert np.allclose(moved[channel].numpy(), expected, atol=1e-4)
    expected = map_coordinates(np.pad(labels[0].numpy(), 3), where + 3, order=0, mode="constant", cval=0)
    between = np.abs(where - np.floor(where) - 0.5).min(axis=0) < 1e-3  # halfway: either neighbour is right
    assert np.array_equal(moved_labels[0].numpy()[~between], expected[~between])


def test_a_small_window_of_a_large_volume_is_the_same_as_the_middle_of_a_large_window():
    """Only the part of the source that the window can touch is read; that must not show."""
    image = volume(1, 40, 40, 40)
    kwargs = {"spacing_mm": (1, 1, 1), "matrix": draw_matrix(np.random.default_rng(3), rotate_deg=15, scale=0.1)}
    small, _ = resample(image, no_labels(image), start=(16, 16, 16), shape=(8, 8, 8), **kwargs)
    large, _ = resample(image, no_labels(image), start=(10, 10, 10), shape=(20, 20, 20), **kwargs)
    assert torch.allclose(small, large[:, 6:14, 6:14, 6:14], atol=1e-5)


def test_beyond_the_source_is_fill_and_background():
    image, labels = torch.ones(1, 4, 4, 4), torch.full((1, 4, 4, 4), 3, dtype=torch.int16)
    shrink = np.eye(3) * 4.0  # the window sees four times its own size
    moved, moved_labels = resample(
        image, labels, start=(0, 0, 0), shape=(4, 4, 4), spacing_mm=(1, 1, 1), matrix=shrink, fill=-5.0
    )
    assert moved[0, 0, 0, 0] == -5 and moved_labels[0, 0, 0, 0] == 0


def test_smooth_field_is_the_cubic_b_spline():
    control = np.random.default_rng(0).normal(size=(1, 7, 4, 5))
    field = smooth_field(control, (11, 6, 9))[0].double().numpy()
    expected = control[0]
    for axis, length in enumerate((11, 6, 9)):
        count = expected.shape[axis]
        spline = BSpline(np.arange(-3, count + 1), np.moveaxis(expected, axis, 0), 3)  # uniform knots, cells 0 .. count - 3
        expected = np.moveaxis(spline(np.linspace(0, count - 3, length)), 0, axis)
    assert np.allclose(field, expected, atol=1e-6)


def test_spline_weights_are_positive_and_sum_to_one():
    weights = spline_weights(17, cells=3)
    assert weights.shape == (17, 6) and weights.min() >= 0
    assert torch.allclose(weights.sum(dim=1), torch.ones(17, dtype=torch.float64))
    assert weights[0].tolist() == pytest.approx([1 / 6, 4 / 6, 1 / 6, 0, 0, 0])


def test_elastic_motion_stays_within_its_bound_and_does_not_fold():
    control = draw_control_points(
        np.random.default_rng(0), shape=(32, 32, 32), spacing_mm=(1, 1, 1), elastic_mm=4.0, grid_mm=10.0
    )
    kwargs = {"start": (0, 0, 0), "shape": (32, 32, 32), "spacing_mm": (1, 1, 1), "matrix": None}
    where = source_positions(control_mm=control, **kwargs)
    still = source_positions(control_mm=None, **kwargs)
    assert 0.5 < (where - still).abs().max() <= 4.0
    jacobian = torch.stack([torch.stack(torch.gradient(axis)) for axis in where.double()]).permute(2, 3, 4, 0, 1)
    assert torch.linalg.det(jacobian).min() > 0


def test_displacements_that_could_fold_space_are_refused():
    with pytest.raises(ValueError, match="elastic_mm 5"):
        draw_control_points(np.random.default_rng(0), shape=(8, 8, 8), spacing_mm=(1, 1, 1), elastic_mm=5, grid_mm=10)


def test_drawn_matrices_are_rotations_times_one_zoom():
    rng = np.random.default_rng(0)
    for _ in range(50):
        matrix = draw_matrix(rng, rotate_deg=15, scale=0.1)
        zoom = np.cbrt(np.linalg.det(matrix))
        assert 1 / 1.1 <= zoom <= 1.1
        assert np.allclose(matrix @ matrix.T, np.eye(3) * zoom**2)
        angle = np.rad2deg(np.arccos((np.trace(matrix / zoom) - 1) / 2))
        assert angle <= 15 * np.sqrt(3) + 1
