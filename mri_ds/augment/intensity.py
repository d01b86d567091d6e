"""What voxels are worth: bias field, gamma, contrast and absent channels, as scans vary. Labels are never touched.

Axes: C channel, D H W voxels.  In: a normalised image (C, D, H, W) and arrays drawn before.  Out: an image of the same shape.
A normalised image has negative values, so bias field and gamma act on its distance from its own minimum, as on a raw signal.
"""

import numpy as np
from torch import Tensor

from mri_ds.augment.frame import Arrays, Frame, per_channel
from mri_ds.augment.spline import smooth_field


def draw_bias_field(rng: np.random.Generator, frame: Frame, strength: float) -> Arrays:
    """Logarithm of the gain at the control points of a B-spline with two cells per axis, (C, 5, 5, 5)."""
    return (rng.uniform(-strength, strength, size=(frame.num_channels, 5, 5, 5)),)


def apply_bias_field(image: Tensor, log_gain: np.ndarray) -> Tensor:
    low = image.amin(dim=(1, 2, 3), keepdim=True)
    return smooth_field(log_gain, image.shape[1:], image.device).exp_().mul_(image - low).add_(low)


def draw_gamma(rng: np.random.Generator, frame: Frame, strength: float) -> Arrays:
    """An exponent per channel between exp(-strength) and exp(strength), (C,)."""
    return (np.exp(rng.uniform(-strength, strength, size=frame.num_channels)),)


def apply_gamma(image: Tensor, exponent: np.ndarray) -> Tensor:
    low, high = image.amin(dim=(1, 2, 3), keepdim=True), image.amax(dim=(1, 2, 3), keepdim=True)
    span = (high - low).clamp_min(1e-6)  # a constant channel stays as it is
    return ((image - low) / span).pow_(per_channel(exponent, image)).mul_(span).add_(low)


def draw_contrast(rng: np.random.Generator, frame: Frame, strength: float) -> Arrays:
    """Gain 1 +- strength and offset +- strength / 2 (standard deviations) per channel, (C,) each."""
    gain = rng.uniform(1 - strength, 1 + strength, size=frame.num_channels)
    return gain, rng.uniform(-strength / 2, strength / 2, size=frame.num_channels)


def apply_contrast(image: Tensor, gain: np.ndarray, offset: np.ndarray) -> Tensor:
    return (image * per_channel(gain, image)).add_(per_channel(offset, image))


def draw_channel_dropout(rng: np.random.Generator, frame: Frame, strength: float) -> Arrays:
    """1 for the channels that stay, (C,): each leaves with chance `strength`, one (any) always stays."""
    stays = rng.random(frame.num_channels) >= strength
    stays[rng.integers(frame.num_channels)] = True
    return () if stays.all() else (stays.astype(np.float64),)


def apply_channel_dropout(image: Tensor, stays: np.ndarray) -> Tensor:
    """An absent channel is 0, the mean of a normalised image."""
    return image * per_channel(stays, image)
