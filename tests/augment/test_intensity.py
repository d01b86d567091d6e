"""Intensity changes: worked numbers, identity at strength zero, bounds."""

import numpy as np
import pytest
import torch

from mri_ds.augment.frame import Frame
from mri_ds.augment.intensity import (
    apply_bias_field,
    apply_channel_dropout,
    apply_contrast,
    apply_gamma,
    draw_bias_field,
    draw_channel_dropout,
)

FRAME = Frame((6, 7, 8), (1.0, 1.0, 1.0), 2)


def image(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 6, 7, 8, generator=torch.Generator().manual_seed(seed))


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


def test_bias_field_multiplies_what_lies_above_the_minimum():
    before = image()
    log_gain = np.full((2, 5, 5, 5), np.log(2.0))
    low = before.amin(dim=(1, 2, 3), keepdim=True)
    assert torch.allclose(apply_bias_field(before, log_gain), low + 2 * (before - low), atol=1e-5)


def test_bias_field_is_smooth_and_bounded():
    before = torch.linspace(0, 1, 64)[None, :, None, None].repeat(1, 1, 64, 64) + 1
    before[0, 0, 0, 0] = 0  # the minimum, so that the gain can be read off
    gain = apply_bias_field(before, *draw_bias_field(np.random.default_rng(0), Frame((64, 64, 64), (1, 1, 1), 1), 0.4)) / before
    gain = gain[0, 1:]
    assert gain.max() <= np.exp(0.4) and gain.min() >= np.exp(-0.4)
    assert 0 < max(gain.diff(dim=axis).abs().max().item() for axis in range(3)) < 0.02


def test_an_absent_channel_is_zero_and_the_others_are_untouched():
    before = image()
    after = apply_channel_dropout(before, np.array([0.0, 1.0]))
    assert not after[0].any() and torch.equal(after[1], before[1])


def test_channels_leave_as_often_as_stated_and_never_all():
    rng, three = np.random.default_rng(0), Frame((6, 7, 8), (1, 1, 1), 3)
    stays = np.stack([dice[0] if (dice := draw_channel_dropout(rng, three, 0.3)) else np.ones(3) for _ in range(3000)])
    assert stays.sum(axis=1).min() == 1 and set(np.unique(stays)) == {0.0, 1.0}
    assert np.allclose(1 - stays.mean(axis=0), 0.3 * 2 / 3, atol=0.03)  # one channel, any of the three, is safe
    assert not any(draw_channel_dropout(rng, Frame((6, 7, 8), (1, 1, 1), 1), 1.0) for _ in range(20)), (
        "an image left without channels"
    )
