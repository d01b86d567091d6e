"""Noise as scanners have it: Gaussian, and Rician as it remains in magnitude images.

Axes: C channel, D H W voxels.  In: a normalised image (C, D, H, W), deviations and a seed drawn before.  Out: the same shape.
The numbers come from a counter and a hash instead of a generator's state, because CPU and GPU generators differ: here the same
seed gives the same noise on every device.
Source: Box and Muller 1958; Wellons 2018 ("lowbias32") for the hash; Gudbjartsson and Patz 1995 for Rician noise.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mri_ds.augment.frame import Arrays, Frame, per_channel

NEXT_STREAM = 0x3C6EF372  # sets the second uniform number of a pair apart from the first


def draw_noise(rng: np.random.Generator, frame: Frame, strength: float) -> Arrays:
    """Standard deviation per channel in 0..strength, (C,), and the seed of the noise itself, two 32-bit numbers."""
    return rng.uniform(0, strength, size=frame.num_channels), rng.integers(-(2**31), 2**31, size=2)


def apply_gaussian(image: Tensor, std: np.ndarray, seed: np.ndarray) -> Tensor:
    return normal(image.shape, seed, image.device).mul_(per_channel(std, image)).add_(image)


def apply_rician(image: Tensor, std: np.ndarray, seed: np.ndarray) -> Tensor:
    """The magnitude of a complex signal with noise in both parts; the signal is what lies above the channel's minimum."""
    low = image.amin(dim=(1, 2, 3), keepdim=True)
    real, imaginary = normal((2, *image.shape), seed, image.device).mul_(per_channel(std, image))
    return real.add_(image - low).square_().add_(imaginary.square_()).sqrt_().add_(low)


def normal(shape: Sequence[int], seed: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """Standard normal numbers of this shape, float32: a function of shape and seed (two 32-bit numbers) alone."""
    count = math.prod(shape)
    pairs = (count + 1) // 2
    first, second = (int(s) for s in seed)
    bits = hash32(hash32(torch.arange(pairs, dtype=torch.int32, device=device).add_(first)).bitwise_xor_(second))
    radius = _uniform(bits).log_().mul_(-2).sqrt_()
    angle = _uniform(hash32(bits.bitwise_xor_(NEXT_STREAM))).mul_(2 * math.pi)
    numbers = torch.empty((2, pairs), device=device)
    torch.mul(radius, angle.cos(), out=numbers[0])
    torch.mul(radius, angle.sin_(), out=numbers[1])
    return numbers.flatten()[:count].view(*shape)


def hash32(x: Tensor) -> Tensor:
    """A permutation of the 32-bit numbers in which every bit of the result hangs on every bit of x; int32, products wrap."""
    x = x ^ ((x >> 16) & 0xFFFF)  # the mask turns the arithmetic shift into a logical one
    x = x.mul_(0x7FEB352D)
    x.bitwise_xor_((x >> 15).bitwise_and_(0x1FFFF))
    x.mul_(-0x7B935975)  # 0x846CA68B
    return x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))


def _uniform(bits: Tensor) -> Tensor:
    """int32 -> float32 in the open interval (0, 1), 2^24 equal steps."""
    return ((bits >> 8) & 0xFFFFFF).float().add_(0.5).mul_(2.0**-24)
