"""N4 on images whose bias is known, because it was put there."""

import sys

import numpy as np
import pytest
from scipy import ndimage

from mri_ds.data.preprocess import prepare
from mri_ds.data.preprocess.bias_field import correct_bias
from mri_ds.errors import InputError

SHAPE = (24, 28, 22)
MM = (6.0, 6.0, 7.0)


@pytest.fixture(scope="module")
def phantom() -> tuple[np.ndarray, np.ndarray]:
    """Three tissues in a ball of 130 mm, in air of exactly zero; and a smooth field of 0.6 to 1.5."""
    centred = [2 * axis / (n - 1) - 1 for axis, n in zip(np.indices(SHAPE), SHAPE)]
    inside = sum(axis**2 for axis in centred) < 0.8
    blobs = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), 1.2)
    tissue = 100 + 60 * np.digitize(blobs, np.quantile(blobs, (0.35, 0.7)))
    noise = np.random.default_rng(1).normal(0, 2, size=SHAPE)
    field = np.exp(0.35 * centred[0] - 0.2 * centred[1] * centred[2] + 0.15 * centred[2])
    return np.where(inside, tissue + noise, 0).astype(np.float32), field


def variation(image: np.ndarray, truth: np.ndarray) -> float:
    """Standard deviation over mean inside one tissue, the first."""
    values = image[(truth > 90) & (truth < 110)]
    return float(values.std() / values.mean())


def test_a_known_field_is_taken_out(phantom):
    truth, field = phantom
    corrected = correct_bias((truth * field).astype(np.float32)[None], MM)[0]
    assert corrected.dtype == np.float32 and (corrected[truth == 0] == 0).all()
    before, after, floor = (variation(image, truth) for image in (truth * field, corrected, truth))
    assert before > 0.1 and after < floor + 0.2 * (before - floor)
    body = truth > 0
    found = np.log((truth * field)[body] / corrected[body])
    assert np.corrcoef(found, np.log(field[body]))[0, 1] > 0.98
    assert abs(found.mean()) < 1e-3, "of geometric mean 1: the scale stays"


def test_an_image_without_bias_hardly_changes(phantom):
    truth, _ = phantom
    corrected = correct_bias(truth[None], MM)[0]
    body = truth > 0
    assert np.abs(corrected[body] / truth[body] - 1).mean() < 0.03


def test_air_with_noise_and_negative_values_is_no_obstacle(phantom):
    truth, field = phantom
    image = (truth * field + np.random.default_rng(3).normal(0, 4, SHAPE)).astype(np.float32)
    corrected = correct_bias(image[None], MM)[0]
    assert np.isfinite(corrected).all() and variation(corrected, truth) < 0.5 * variation(image, truth)


def test_the_same_input_gives_the_same_result_and_channels_are_apart(phantom):
    truth, field = phantom
    image = np.stack([(truth * field).astype(np.float32), truth])
    before = image.copy()
    both = correct_bias(image, MM)
    assert np.array_equal(both[0], correct_bias(image[:1], MM)[0]) and np.array_equal(both, correct_bias(image, MM))
    assert np.array_equal(image, before)


def test_a_small_crop_keeps_its_anatomy():
    """35 mm of tissue: the field may not follow what changes over a centimetre."""
    blobs = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(35, 50, 36)), 4)
    image = (100 + 40 * blobs / blobs.std()).clip(1).astype(np.float32)
    corrected = correct_bias(image[None], (1.0, 1.0, 1.0))[0]
    assert np.corrcoef(corrected.ravel(), image.ravel())[0, 1] > 0.9


def test_nothing_positive_is_nothing_to_correct():
    image = -np.ones((1, 6, 6, 6), dtype=np.float32)
    assert np.array_equal(correct_bias(image, MM), image)


def test_prepare_corrects_before_it_measures(phantom, subject):
    truth, field = phantom
    biased = (truth * field).astype(np.float32)[None]
    sample = subject(shape=SHAPE, image=biased, affine=np.diag([*MM, 1]), targets={})
    chosen = {"spacing_mm": MM, "clip_percentiles": (0.5, 99.5)}
    corrected = subject(shape=SHAPE, image=correct_bias(biased, MM), affine=np.diag([*MM, 1]), targets={})
    got = prepare(sample, bias_correction=True, **chosen)["image"]
    assert np.array_equal(got, prepare(corrected, **chosen)["image"])
    assert np.abs(got - prepare(sample, **chosen)["image"]).max() > 0.5


def test_without_simpleitk_one_line_says_what_to_install(monkeypatch, subject):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(InputError, match=r"data.bias_correction needs SimpleITK. Fix: pip install 'mri_ds\[preprocess\]'"):
        prepare(subject(), spacing_mm=(1, 1, 1), clip_percentiles=(0, 100), bias_correction=True)
    prepare(subject(), spacing_mm=(1, 1, 1), clip_percentiles=(0, 100))
