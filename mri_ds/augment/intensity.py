"""What voxels are worth: bias field, gamma, contrast and noise, as scanners vary. Labels are never touched.

Axes: C channel, D H W voxels.  In: a normalised image (C, D, H, W) and arrays drawn before.  Out: an image of the same shape.
To add one: two functions (draw the dice, apply them) and a row in INTENSITIES; rows are applied from first to last.
A normalised image has negative values, so bias field and gamma act on its distance from its own minimum, as on a raw signal.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mri_ds.augment.spatial import smooth_field

Arrays = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Intensity:
    """One kind of variation. draw(rng, num_channels, strength) -> arrays; apply(image, *arrays) -> image."""

    draw: Callable[[np.random.Generator, int, float], Arrays]
    apply: Callable[..., Tensor]
    prob: float
    strength: float


def draw_bias_field(rng: np.random.Generator, num_channels: int, strength: float) -> Arrays:
    """Logarithm of the gain at the control points of a B-spline with two cells per axis, (C, 5, 5, 5)."""
    return (rng.uniform(-strength, strength, size=(num_channels, 5, 5, 5)),)


def apply_bias_field(image: Tensor, log_gain: np.ndarray) -> Tensor:
    low = image.amin(dim=(1, 2, 3), keepdim=True)
    gain = smooth_field(log_gain, image.shape[1:]).exp_().to(image.device)
    return (image - low).mul_(gain).add_(low)


def draw_gamma(rng: np.random.Generator, num_channels: int, strength: float) -> Arrays:
    """An exponent per channel between exp(-strength) and exp(strength), (C,)."""
    return (np.exp(rng.uniform(-strength, strength, size=num_channels)),)


def apply_gamma(image: Tensor, exponent: np.ndarray) -> Tensor:
    low, high = image.amin(dim=(1, 2, 3), keepdim=True), image.amax(dim=(1, 2, 3), keepdim=True)
    span = (high - low).clamp_min(1e-6)  # a constant channel stays as it is
    return ((image - low) / span).pow_(_per_channel(exponent, image)).mul_(span).add_(low)


def draw_contrast(rng: np.random.Generator, num_channels: int, strength: float) -> Arrays:
    """Gain 1 +- strength and offset +- strength / 2 (standard deviations) per channel, (C,) each."""
    gain = rng.uniform(1 - strength, 1 + strength, size=num_channels)
    return gain, rng.uniform(-strength / 2, strength / 2, size=num_channels)


def apply_contrast(image: Tensor, gain: np.ndarray, offset: np.ndarray) -> Tensor:
    return (image * _per_channel(gain, image)).add_(_per_channel(offset, image))


def draw_noise(rng: np.random.Generator, num_channels: int, strength: float) -> Arrays:
    """Standard deviation per channel in 0..strength, (C,), and the seed of the noise itself."""
    return rng.uniform(0, strength, size=num_channels), rng.integers(2**31, size=1)


def apply_noise(image: Tensor, std: np.ndarray, seed: np.ndarray) -> Tensor:
    generator = torch.Generator(device=image.device).manual_seed(int(seed[0]))
    noise = torch.randn(image.shape, generator=generator, device=image.device, dtype=image.dtype)
    return noise.mul_(_per_channel(std, image)).add_(image)


def _per_channel(values: np.ndarray, image: Tensor) -> Tensor:
    return torch.from_numpy(values).to(image)[:, None, None, None]


INTENSITIES: dict[str, Intensity] = {
    "bias_field": Intensity(draw_bias_field, apply_bias_field, prob=0.3, strength=0.4),
    "gamma": Intensity(draw_gamma, apply_gamma, prob=0.3, strength=0.3),
    "contrast": Intensity(draw_contrast, apply_contrast, prob=0.3, strength=0.2),
    "noise": Intensity(draw_noise, apply_noise, prob=0.2, strength=0.15),
}
