"""The network's grid: field of view, thick slices as in nnU-Net, and SimpleITK as judge of where every voxel came to lie."""

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from mri_ds.data.preprocess import to_grid
from mri_ds.data.preprocess.grid import axis_orders, slice_axis

LPS = np.diag([-1.0, -1.0, 1.0])


def world(affine: np.ndarray, voxel) -> np.ndarray:
    return affine[:3, :3] @ np.asarray(voxel, dtype=float) + affine[:3, 3]


def as_sitk(voxels: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """With its place in the world, which SimpleITK counts towards Left, Posterior, Superior."""
    image = sitk.GetImageFromArray(voxels.transpose(2, 1, 0).astype(np.float64))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((LPS @ affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin((LPS @ affine[:3, 3]).tolist())
    return image


def by_sitk(voxels, affine, shape, new_affine, interpolator) -> np.ndarray:
    target = as_sitk(np.zeros(shape), new_affine)
    return sitk.GetArrayFromImage(sitk.Resample(as_sitk(voxels, affine), target, sitk.Transform(), interpolator)).transpose(
        2, 1, 0
    )


@pytest.mark.parametrize("spacing", [(0.8, 1.6, 2.1), (1.1, 2.6, 3.2), (1.0, 1.7, 2.0)])
def test_images_are_simpleitks_cubic_spline_in_world_space(spacing, subject, oblique):
    """SimpleITK mirrors at the border and we repeat: compared 10 voxels inside it. Both are given nothing but affines."""
    sample = subject(shape=(40, 36, 33), affine=oblique((1.0, 2.0, 3.0)), targets={})
    result = to_grid(sample, spacing)
    shape = result["image"].shape[1:]
    expected = by_sitk(sample["image"][0], sample["affine"], shape, result["affine"], sitk.sitkBSpline)
    inside = tuple(slice(int(np.ceil(10 * m / n)), m - int(np.ceil(10 * m / n))) for n, m in zip((40, 36, 33), shape))
    low, high = sample["image"].min(), sample["image"].max()
    assert expected[inside].size > 500
    assert np.abs(result["image"][0][inside] - expected[inside].clip(low, high)).max() < 1e-4


def test_label_shares_are_simpleitks_linear_in_world_space(subject, oblique):
    sample = subject(shape=(20, 18, 16), affine=oblique((1.0, 2.0, 2.5)))
    result = to_grid(sample, (0.8, 1.6, 2.1))
    label, shape = sample["targets"]["tissue"], result["image"].shape[1:]
    shares = np.stack([by_sitk(label == k, sample["affine"], shape, result["affine"], sitk.sitkLinear) for k in range(4)])
    clear = np.sort(shares, axis=0)[-2] < shares.max(axis=0) - 1e-4
    assert clear.mean() > 0.9 and np.array_equal(result["targets"]["tissue"][clear], shares.argmax(axis=0)[clear])


def by_nnunet(volume: np.ndarray, shape, order: int, across: int) -> np.ndarray:
    """nnU-Net's resample_data_or_seg with separate z, in its two steps: each slice by itself, then the nearest slice.

    Its skimage.transform.resize(mode="edge", anti_aliasing=False) is scipy's zoom with the border repeated, clipped to the range.
    """
    volume = np.moveaxis(volume.astype(np.float64), across, 0)
    flat = [shape[axis] for axis in range(3) if axis != across]
    zoom = [m / n for n, m in zip(volume.shape[1:], flat)]
    slices = np.stack([ndimage.zoom(each, zoom, order=order, mode="nearest", grid_mode=True) for each in volume])
    rows, columns, depth = volume.shape[0] / shape[across], np.arange(flat[0]), np.arange(flat[1])
    centres = rows * (np.arange(shape[across]) + 0.5) - 0.5
    places = np.meshgrid(centres, columns, depth, indexing="ij")
    return np.moveaxis(ndimage.map_coordinates(slices, places, order=0, mode="nearest"), 0, across)


@pytest.mark.parametrize(
    ("old", "new"),
    [((0.7, 0.7, 6.5), (0.5, 0.6, 2.0)), ((6.0, 1.0, 1.0), (5.0, 0.8, 0.8)), ((2.0, 2.0, 2.0), (1.5, 0.4, 1.5))],
    ids=["thick to thin", "thick to thick", "target thin along one axis: not separate"],
)
def test_thick_slices_are_dealt_with_apart_as_nnunet_does(old, new, subject):
    sample = subject(shape=(12, 13, 11), affine=np.diag([*old, 1.0]))
    result = to_grid(sample, new)
    shape, label = result["image"].shape[1:], sample["targets"]["tissue"]
    across = slice_axis(old, new)
    if across is None:
        zoom = [m / n for n, m in zip((12, 13, 11), shape)]
        expected = ndimage.zoom(sample["image"][0].astype(np.float64), zoom, order=3, mode="nearest", grid_mode=True)
    else:
        expected = by_nnunet(sample["image"][0], shape, 3, across)
        shares = np.stack([by_nnunet(label == k, shape, 1, across) for k in range(4)])
        clear = np.sort(shares, axis=0)[-2] < shares.max(axis=0) - 1e-4
        assert np.array_equal(result["targets"]["tissue"][clear], shares.argmax(axis=0)[clear])
    low, high = sample["image"].min(), sample["image"].max()
    assert np.abs(result["image"][0] - expected.clip(low, high)).max() < 1e-4


def test_which_axis_runs_across_thick_slices():
    """nnU-Net's rule: over three times the shortest edge, one such axis, the old grid before the new."""
    assert slice_axis((1, 1, 3), (1, 1, 1)) is None and slice_axis((1, 1, 3.01), (1, 1, 1)) == 2
    assert slice_axis((1, 1, 1), (5, 1, 1)) == 0 and slice_axis((6, 1, 1), (1, 1, 6)) == 0
    assert slice_axis((0.3, 1.2, 1.2), (1, 1, 6)) is None, "two long axes: no slices"
    assert axis_orders((0.5, 5, 0.5), (1, 1, 1), 3) == (3, 0, 3) and axis_orders((1, 1, 1), (2, 2, 2), 1) == (1, 1, 1)


def test_merging_slices_is_their_mean_and_not_one_of_them(subject):
    """1 mm -> 5 mm slices: nearest would show every fifth slice with all its noise."""
    sample = subject(shape=(6, 6, 25), targets={})
    result = to_grid(sample, (1, 1, 5))
    assert np.allclose(result["image"][0], sample["image"][0].reshape(6, 6, 5, 5).mean(axis=3), atol=1e-6)


def test_image_values_stay_within_their_range(subject):
    """A spline swings past a step by a tenth of its height."""
    step = np.zeros((2, 20, 8, 8), dtype=np.float32)
    step[0, 10:], step[1, 10:] = 100, -3
    result = to_grid(subject(image=step, shape=(20, 8, 8), targets={}), (0.6, 1, 1))["image"]
    assert (result[0].min(), result[0].max(), result[1].min(), result[1].max()) == (0, 100, -3, 0)


def test_a_grid_that_is_right_already_is_a_copy(subject):
    sample = subject(affine=np.diag([1.0, 2.0, 3.0, 1.0]))
    result = to_grid(sample, (1.0005, 2.0, 2.998))
    assert np.array_equal(result["image"], sample["image"]) and not np.shares_memory(result["image"], sample["image"])
    assert np.array_equal(result["targets"]["tissue"], sample["targets"]["tissue"])
    assert not np.shares_memory(result["targets"]["tissue"], sample["targets"]["tissue"])
    assert np.array_equal(result["affine"], sample["affine"]) and result["targets"]["age"] == 40.5


def test_the_new_grid_fills_the_same_field_of_view(subject, oblique):
    """5 voxels of 2 mm are 10 mm: 7 voxels of 10 / 7 mm. The outer corners keep their place in the world."""
    sample = subject(shape=(5, 6, 9), affine=oblique((2.0, 1.0, 1.0)))
    result = to_grid(sample, (1.5, 1.0, 3.0))
    assert result["image"].shape == (1, 7, 6, 3) and result["targets"]["tissue"].shape == (7, 6, 3)
    assert result["spacing_mm"] == pytest.approx([10 / 7, 1, 3])
    for old, new in [((-0.5,) * 3, (-0.5,) * 3), ((4.5, 5.5, 8.5), (6.5, 5.5, 2.5))]:
        assert world(sample["affine"], old) == pytest.approx(world(result["affine"], new))


@pytest.mark.parametrize("spacing", [2.0, 2.5, 3.0])
def test_coarse_grids_shift_nothing_and_quieten_noise(spacing, subject):
    """A ramp stays a ramp; noise is averaged and not picked: its variance falls with the voxels that are merged."""
    ramp = np.broadcast_to(np.arange(60, dtype=np.float32)[:, None, None], (1, 60, 4, 4)).copy()
    result = to_grid(subject(shape=(60, 4, 4), image=ramp, targets={}), (spacing, 1, 1))["image"][0, :, 0, 0]
    place = (np.arange(len(result)) + 0.5) * spacing - 0.5
    assert np.allclose(result[5:-5], place[5:-5], atol=1e-3)
    noisy = to_grid(subject(shape=(600, 8, 8), targets={}), (spacing, 1, 1))["image"]
    assert noisy.std() < 1.1 * np.sqrt(1 / spacing)


def test_a_thin_axis_keeps_one_voxel(subject):
    assert to_grid(subject(shape=(8, 8, 1)), (1.0, 1.0, 40.0))["image"].shape == (1, 8, 8, 1)
