"""Crop, rotation, scaling and elastic motion: worked positions, exactness, an oracle from scipy."""

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform, map_coordinates

from mri_ds.augment.deformation import draw_control_points, draw_grid_distortion, draw_matrix
from mri_ds.augment.frame import Frame
from mri_ds.augment.spatial import Deformation, crop, permute, read_nearest, resample, source_positions

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
    where = source_positions(start=(3, -1, 0), shape=(2, 3, 4), spacing_mm=(1, 2, 5), deformation=Deformation())
    assert where[:, 0, 0, 0].tolist() == [3, -1, 0]
    assert where[:, 1, 2, 3].tolist() == [4, 1, 3]


def test_rotation_happens_in_millimetres():
    """Voxels of 1 x 2 mm, a quarter turn: 4 voxels along axis 0 (4 mm) become 2 voxels along axis 1 (4 mm)."""
    kwargs = {"start": (0, 0, 0), "shape": (9, 9, 1), "spacing_mm": (1, 2, 1)}
    where = source_positions(deformation=Deformation(matrix=RIGHT_ANGLE), **kwargs)
    assert where[:, 4, 4, 0].tolist() == [4, 4, 0], "the centre moved"
    assert where[:, 8, 4, 0].tolist() == pytest.approx([4, 6, 0])
    assert where[:, 4, 6, 0].tolist() == pytest.approx([0, 4, 0])


def test_identity_matrix_returns_the_image():
    image, labels = volume(2, 6, 7, 8), torch.randint(0, 5, (1, 6, 7, 8), dtype=torch.int16)
    moved, moved_labels = resample(
        image, labels, start=(0, 0, 0), shape=(6, 7, 8), spacing_mm=(1, 2, 3), deformation=Deformation(matrix=np.eye(3)), fill=0.3
    )
    assert torch.allclose(moved, image, atol=1e-5)
    assert torch.equal(moved_labels, labels)


def test_a_quarter_turn_is_an_exact_transposition():
    image = volume(1, 7, 7, 3)
    moved, _ = resample(
        image,
        no_labels(image),
        start=(0, 0, 0),
        shape=(7, 7, 3),
        spacing_mm=(1, 1, 1),
        deformation=Deformation(matrix=RIGHT_ANGLE),
    )
    assert torch.allclose(moved, torch.rot90(image, k=-1, dims=(1, 2)), atol=1e-5)


@pytest.mark.parametrize("start", [(0, 0, 0), (4, 2, -3)])
def test_resampling_agrees_with_scipy(start):
    """The same positions read by scipy; image linear, label nearest; window smaller than the source, partly outside it."""
    rng = np.random.default_rng(1)
    spacing, shape = (1.0, 1.5, 2.0), (9, 8, 7)
    image, labels = volume(2, 12, 11, 10), torch.randint(0, 4, (1, 12, 11, 10), dtype=torch.int16)
    matrix = draw_matrix(rng, rotate_deg=20, scale=0.2)
    control = draw_control_points(rng, shape=shape, spacing_mm=spacing, elastic_mm=2.0, grid_mm=6.0)
    (cells,) = draw_grid_distortion(rng, Frame(shape, spacing, 2), 0.3)
    everything = Deformation(matrix=matrix, shift_mm=np.array([0.5, -1.0, 2.0]), control_mm=control, cells=cells)
    kwargs = {"start": start, "shape": shape, "spacing_mm": spacing, "deformation": everything}
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
    matrix = draw_matrix(np.random.default_rng(3), rotate_deg=15, scale=0.1)
    kwargs = {"spacing_mm": (1, 1, 1), "deformation": Deformation(matrix=matrix)}
    small, _ = resample(image, no_labels(image), start=(16, 16, 16), shape=(8, 8, 8), **kwargs)
    large, _ = resample(image, no_labels(image), start=(10, 10, 10), shape=(20, 20, 20), **kwargs)
    assert torch.allclose(small, large[:, 6:14, 6:14, 6:14], atol=1e-5)


def test_beyond_the_source_is_fill_and_background():
    image, labels = torch.ones(1, 4, 4, 4), torch.full((1, 4, 4, 4), 3, dtype=torch.int16)
    shrink = np.eye(3) * 4.0  # the window sees four times its own size
    moved, moved_labels = resample(
        image, labels, start=(0, 0, 0), shape=(4, 4, 4), spacing_mm=(1, 1, 1), deformation=Deformation(matrix=shrink), fill=-5.0
    )
    assert moved[0, 0, 0, 0] == -5 and moved_labels[0, 0, 0, 0] == 0


def test_an_affine_map_agrees_with_scipys_affine_transform():
    """scipy is given the matrix and offset in voxels: about the window's centre, in mm, as the formula of the module says."""
    image, spacing = volume(1, 20, 18, 16), np.array([1.0, 1.5, 2.0])
    matrix = draw_matrix(np.random.default_rng(5), rotate_deg=30, scale=0.2)
    shift, start, shape = np.array([2.0, -3.0, 1.0]), np.array([3, 2, -1]), np.array([12, 10, 14])
    moved, _ = resample(
        image,
        no_labels(image),
        start=start.tolist(),
        shape=shape.tolist(),
        spacing_mm=spacing.tolist(),
        deformation=Deformation(matrix=matrix, shift_mm=shift),
        fill=0.5,
    )
    voxels = np.diag(1 / spacing) @ matrix @ np.diag(spacing)
    middle = (shape - 1) / 2
    offset = start + middle + shift / spacing - voxels @ middle
    padded = np.pad(image[0].numpy().astype(float), 40, constant_values=0.5)
    expected = affine_transform(padded, voxels, offset=offset + 40, output_shape=tuple(shape), order=1, mode="constant", cval=0.5)
    assert np.allclose(moved[0].numpy(), expected, atol=1e-4)


def test_stretched_cells_by_hand():
    """Ten voxels in two cells, of which the first shows 7 source voxels and the second 3: steps of 1.4 and 0.6 voxels."""
    cells = np.array([[0, 0.7, 1.0], [0, 0.5, 1.0], [0, 0.5, 1.0]])
    where = source_positions(start=(0, 0, 0), shape=(10, 4, 4), spacing_mm=(1, 1, 1), deformation=Deformation(cells=cells))
    line = where[0, :, 0, 0].tolist()
    assert line[:2] == pytest.approx([0.2, 1.6]) and line[5:7] == pytest.approx([6.8, 7.4])
    assert torch.allclose(where[1, 0, :, 0], torch.arange(4.0), atol=1e-6)


def test_labels_are_looked_up_and_not_computed_with():
    """Ids beyond 2^24, which float32 cannot tell apart, come out as they went in."""
    labels = torch.tensor([16_777_217, 2_000_000_001, -5, 7]).view(1, 4, 1, 1)
    where = torch.zeros(3, 6, 1, 1)
    where[0, :, 0, 0] = torch.tensor([-0.6, 0.2, 0.9, 2.4, 3.49, 3.6])
    assert read_nearest(labels, where).flatten().tolist() == [0, 16_777_217, 2_000_000_001, -5, 7, 0]


def test_permute_turns_then_flips():
    voxels = torch.arange(2 * 3 * 3).view(1, 2, 3, 3)
    turned = permute(voxels, quarter_turns=(np.array([1, 2, 1]),), flips=())
    assert torch.equal(turned, torch.rot90(voxels, 1, (2, 3)))
    assert torch.equal(permute(voxels, quarter_turns=(np.array([1, 2, 1]),), flips=(np.array([0, 1]),)), turned.flip([1, 2]))
    assert torch.equal(permute(voxels, quarter_turns=(), flips=()), voxels)
