"""Orientation, grid and intensities: exact where they claim to be, held against numpy, scipy, nibabel and torch elsewhere."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from mri_ds.config import TaskConfig
from mri_ds.data.manifest import Fingerprint, Manifest
from mri_ds.data.preprocess import border_minimum, normalize, prepare, propose, scores_to_shape, to_canonical, to_grid
from mri_ds.errors import InputError
from mri_ds.sample import Sample


def make_sample(shape=(6, 7, 8), affine=None, channels=1, seed=0) -> Sample:
    rng = np.random.default_rng(seed)
    affine = np.diag([1.0, 1.0, 1.0, 1.0]) if affine is None else affine
    return Sample(
        subject_id="s1",
        image=rng.normal(size=(channels, *shape)).astype(np.float32),
        affine=affine,
        spacing_mm=np.linalg.norm(affine[:3, :3], axis=0),
        targets={"tissue": rng.integers(0, 4, size=shape).astype(np.int16), "lesion": 1, "age": 40.5},
    )


def oblique(spacing=(1.0, 2.0, 3.0)) -> np.ndarray:
    angle = np.deg2rad(12)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing)
    affine[:3, 3] = (-30, 12, 7)
    return affine


def world(affine: np.ndarray, voxel) -> np.ndarray:
    return affine[:3, :3] @ np.asarray(voxel, dtype=float) + affine[:3, 3]


@pytest.mark.parametrize("code", ["".join(c) for p in ("RAS", "LPI") for c in itertools.permutations(p)] + ["LAS", "RPS", "SAL"])
def test_canonical_agrees_with_nibabel_and_is_exact(code):
    start = oblique()
    to_code = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(code))
    base = make_sample(affine=start, channels=2)
    turned = base | {
        "image": np.stack([nib.orientations.apply_orientation(c, to_code) for c in base["image"]]),
        "affine": start @ nib.orientations.inv_ornt_aff(to_code, (6, 7, 8)),
        "targets": base["targets"] | {"tissue": nib.orientations.apply_orientation(base["targets"]["tissue"], to_code)},
    }
    assert "".join(nib.aff2axcodes(turned["affine"])) == code
    back = to_canonical(turned)
    oracle = nib.as_closest_canonical(nib.Nifti1Image(np.moveaxis(turned["image"], 0, -1), turned["affine"]))
    assert np.array_equal(back["image"], np.moveaxis(oracle.get_fdata(dtype=np.float32), -1, 0))
    assert np.allclose(back["affine"], oracle.affine)
    assert np.array_equal(back["image"], base["image"]) and np.array_equal(back["targets"]["tissue"], base["targets"]["tissue"])
    assert np.allclose(back["affine"], start) and np.allclose(back["spacing_mm"], (1, 2, 3))
    assert back["targets"]["lesion"] == 1 and back["image"].flags.c_contiguous


def test_an_affine_without_direction_is_refused():
    affine = np.eye(4)
    affine[1, 1] = 0
    with pytest.raises(InputError, match="s1: affine gives a voxel axis no direction"):
        to_canonical(make_sample(affine=affine))


def test_a_grid_that_is_right_already_is_a_copy():
    sample = make_sample(affine=np.diag([1.0, 2.0, 3.0, 1.0]))
    result = to_grid(sample, (1.0005, 2.0, 2.998))
    assert np.array_equal(result["image"], sample["image"]) and result["image"] is not sample["image"]
    assert result["targets"]["tissue"] is not sample["targets"]["tissue"]
    assert np.array_equal(result["affine"], sample["affine"]) and result["targets"]["age"] == 40.5


def test_the_new_grid_fills_the_same_field_of_view():
    """5 voxels of 2 mm are 10 mm: 7 voxels of 10 / 7 mm. The outer corners keep their place in the world."""
    sample = make_sample(shape=(5, 6, 9), affine=oblique((2.0, 1.0, 1.0)))
    result = to_grid(sample, (1.5, 1.0, 3.0))
    assert result["image"].shape == (1, 7, 6, 3) and result["targets"]["tissue"].shape == (7, 6, 3)
    assert result["spacing_mm"] == pytest.approx([10 / 7, 1, 3])
    for old, new in [((-0.5,) * 3, (-0.5,) * 3), ((4.5, 5.5, 8.5), (6.5, 5.5, 2.5))]:
        assert world(sample["affine"], old) == pytest.approx(world(result["affine"], new))


def test_images_are_resampled_linearly_over_the_field_of_view():
    sample = make_sample(shape=(6, 7, 8), channels=2)
    result = to_grid(sample, (0.5, 0.9, 1.3))
    expected = F.interpolate(
        torch.from_numpy(sample["image"])[None], size=result["image"].shape[1:], mode="trilinear", align_corners=False
    )
    assert result["image"].shape == (2, 12, 8, 6) and np.array_equal(result["image"], expected[0].numpy())


@pytest.mark.parametrize("spacing", [2.0, 2.5, 3.0])
def test_coarse_grids_are_averaged_first(spacing):
    """A ramp stays a ramp (no shift); noise is averaged and not picked: its variance falls with the voxels that are merged."""
    ramp = np.broadcast_to(np.arange(60, dtype=np.float32)[:, None, None], (60, 4, 4))
    sample = make_sample(shape=(60, 4, 4)) | {"image": ramp[None].copy(), "targets": {}}
    result = to_grid(sample, (spacing, 1, 1))
    place = (np.arange(result["image"].shape[1]) + 0.5) * spacing - 0.5
    assert np.allclose(result["image"][0, 2:-2, 0, 0], place[2:-2], atol=1e-3)
    noise = make_sample(shape=(600, 8, 8)) | {"targets": {}}
    assert to_grid(noise, (spacing, 1, 1))["image"].std() < 1.1 * np.sqrt(1 / spacing)


def test_averaging_by_an_odd_factor_is_the_mean_of_each_block():
    sample = make_sample(shape=(9, 6, 5)) | {"targets": {}}
    result = to_grid(sample, (3.0, 1.0, 1.0))["image"][0]
    assert np.allclose(result, sample["image"][0].reshape(3, 3, 6, 5).mean(axis=1), atol=1e-6)


def test_labels_are_the_class_with_the_largest_share():
    """Upsampling by two: each class's one-hot map is interpolated linearly and the largest wins."""
    sample = make_sample(shape=(8, 7, 6))
    label = sample["targets"]["tissue"]
    result = to_grid(sample, (0.5, 0.5, 0.4))["targets"]["tissue"]
    one_hot = F.one_hot(torch.from_numpy(label).long(), 4).permute(3, 0, 1, 2).float()
    shares = F.interpolate(one_hot[None], size=result.shape, mode="trilinear", align_corners=False)[0].numpy()
    best = shares.max(axis=0)
    chosen = np.take_along_axis(shares, result[None].astype(np.int64), axis=0)[0]
    assert np.allclose(chosen, best, atol=1e-5) and result.dtype == np.int16
    clear = np.sort(shares, axis=0)[-2] < best - 1e-4
    assert np.array_equal(result[clear], shares.argmax(axis=0)[clear])


def test_labels_never_get_a_value_between_two_classes():
    label = np.zeros((10, 10, 10), dtype=np.int16)
    label[5:] = 9
    sample = make_sample(shape=(10, 10, 10)) | {"targets": {"tissue": label}}
    assert set(np.unique(to_grid(sample, (0.7, 0.7, 0.7))["targets"]["tissue"])) == {0, 9}


def test_a_thin_axis_keeps_one_voxel():
    assert to_grid(make_sample(shape=(8, 8, 1)), (1.0, 1.0, 40.0))["image"].shape == (1, 8, 8, 1)


def test_scores_come_back_to_the_native_grid():
    """A smooth field survives the trip to the network's grid and back; the label grid has the native shape."""
    axes = np.meshgrid(*(np.linspace(0, np.pi, n) for n in (20, 24, 22)), indexing="ij")
    field = np.prod(np.sin(axes), axis=0).astype(np.float32)
    sample = make_sample(shape=(20, 24, 22)) | {"image": field[None], "targets": {}}
    there = to_grid(sample, (0.8, 0.9, 1.2))
    back = scores_to_shape(torch.from_numpy(there["image"]), (20, 24, 22))
    assert back.shape == (1, 20, 24, 22) and np.abs(back[0].numpy() - field).max() < 0.02
    assert scores_to_shape(back, (20, 24, 22)) is back


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


def test_prepare_is_grid_then_intensities():
    sample = make_sample(shape=(8, 8, 8), affine=np.diag([2.0, 2.0, 2.0, 1.0]))
    result = prepare(sample, spacing_mm=(1, 1, 1), clip_percentiles=(1, 99))
    assert np.array_equal(result["image"], normalize(to_grid(sample, (1, 1, 1))["image"], (1, 99)))
    assert result["targets"]["tissue"].shape == (16, 16, 16)


def test_border_minimum_looks_at_the_faces_only():
    image = np.ones((2, 4, 5, 6), dtype=np.float32)
    image[:, 2, 2, 2] = -9
    assert border_minimum(image) == 1.0
    image[1, 0, 3, 3] = -2
    assert border_minimum(image) == -2.0


def make_manifest(shape, spacing) -> Manifest:
    return Manifest(
        format_version=1,
        layout="folder",
        channels=["T1w"],
        tasks={"age": TaskConfig(kind="regression")},
        splits={},
        fingerprint=Fingerprint(median_spacing_mm=spacing, median_shape=shape),
    )


def test_propose_fits_the_median_subject():
    """Hippocampus: 36 x 50 x 35 voxels of 1 mm -> 40 x 56 x 40, 10 x 14 x 10 = 1,400 tokens at stride 4."""
    proposed = propose(make_manifest((36, 50, 35), (1.0, 1.0, 1.0)))
    assert proposed == {"spacing_mm": (1.0, 1.0, 1.0), "patch": (40, 56, 40), "token_stride": (4, 4, 4)}


def test_propose_caps_the_patch_and_coarsens_the_tokens():
    proposed = propose(make_manifest((180, 220, 33), (1.0, 1.0, 4.0)))
    assert proposed["patch"] == (96, 96, 40) and proposed["token_stride"] == (8, 8, 8)


def test_propose_builds_on_what_is_given():
    proposed = propose(make_manifest((36, 50, 35), (1.0, 1.0, 1.0)), spacing_mm=(2.0, 2.0, 2.0))
    assert proposed == {"spacing_mm": (2.0, 2.0, 2.0), "patch": (24, 32, 24), "token_stride": (4, 4, 4)}
    assert propose(make_manifest((36, 50, 35), (1.0, 1.0, 1.0)), patch=(64, 64, 64))["token_stride"] == (8, 8, 8)
