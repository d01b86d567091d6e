"""Intensity changes: worked numbers, identity at strength zero, bounds."""

import numpy as np
import pytest
import torch

from mri_ds.augment.intensity import INTENSITIES, apply_bias_field, apply_contrast, apply_gamma, apply_noise


def image(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 6, 7, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", INTENSITIES)
def test_strength_zero_changes_nothing(name):
    row, before = INTENSITIES[name], image()
    after = row.apply(before, *row.draw(np.random.default_rng(0), 2, 0.0))
    assert torch.allclose(after, before, atol=1e-6)


@pytest.mark.parametrize("name", INTENSITIES)
def test_full_strength_changes_a_copy_and_the_same_dice_give_the_same_image(name):
    row, before = INTENSITIES[name], image()
    arrays = row.draw(np.random.default_rng(1), 2, row.strength)
    after = row.apply(before, *arrays)
    assert torch.equal(before, image()), "the input was changed in place"
    assert (after - before).abs().max() > 1e-3 and after.shape == before.shape and after.dtype == torch.float32
    assert torch.equal(after, row.apply(before, *arrays))


def test_gamma_by_hand():
    """Values -1, 0, 3 lie at 0, 1/4, 1 of their range; squared 0, 1/16, 1: back at -1, -3/4, 3. Channel 1 has exponent 1."""
    before = torch.tensor([[-1.0, 0.0, 3.0], [-1.0, 0.0, 3.0]]).view(2, 3, 1, 1)
    after = apply_gamma(before, np.array([2.0, 1.0])).flatten().tolist()
    assert after == pytest.approx([-1, -0.75, 3, -1, 0, 3])


def test_gamma_leaves_a_constant_channel_alone():
    before = torch.full((1, 2, 2, 2), 0.5)
    assert torch.allclose(apply_gamma(before, np.array([1.3])), before)


def test_contrast_by_hand():
    before = torch.tensor([1.0, -2.0]).view(2, 1, 1, 1)
    assert apply_contrast(before, np.array([2.0, 0.5]), np.array([0.25, 1.0])).flatten().tolist() == [2.25, 0.0]


def test_noise_has_the_stated_deviation_per_channel():
    before = torch.zeros(2, 40, 40, 40)
    noise = apply_noise(before, np.array([0.1, 0.0]), np.array([7]))
    assert noise[0].std().item() == pytest.approx(0.1, rel=0.02) and noise[0].mean().abs() < 1e-3
    assert not noise[1].any()
    assert not torch.equal(noise, apply_noise(before, np.array([0.1, 0.0]), np.array([8])))


def test_bias_field_multiplies_what_lies_above_the_minimum():
    before = image()
    log_gain = np.full((2, 5, 5, 5), np.log(2.0))
    low = before.amin(dim=(1, 2, 3), keepdim=True)
    assert torch.allclose(apply_bias_field(before, log_gain), low + 2 * (before - low), atol=1e-5)


def test_bias_field_is_smooth_and_bounded():
    before = torch.linspace(0, 1, 64)[None, :, None, None].repeat(1, 1, 64, 64) + 1
    before[0, 0, 0, 0] = 0  # the minimum, so that the gain can be read off
    row = INTENSITIES["bias_field"]
    gain = apply_bias_field(before, *row.draw(np.random.default_rng(0), 1, row.strength)) / before
    gain = gain[0, 1:]
    assert gain.max() <= np.exp(row.strength) and gain.min() >= np.exp(-row.strength)
    assert 0 < max(gain.diff(dim=axis).abs().max().item() for axis in range(3)) < 0.02
