"""What a scan does to the lines along each axis: blur, low resolution, Gibbs ringing, ghosting, as one matrix per axis.

Axes: C channel, D H W voxels, n voxels of the axis at hand.  In: an image (C, D, H, W).  Out: the same shape.
All of these are linear and work along one axis at a time, so any number of them is three matrix products, (C, n, n) each: cheaper
than one 3-D Fourier transform and back, on CPU and GPU. Blur and ringing see the image continued as in a mirror (the cosine
transform), so that the edges of a crop neither darken nor ring against the opposite edge; ghosts wrap round, as in a scan.
Source: Gudbjartsson and Patz 1995 on k-space; TorchIO's RandomGhosting for the planes that make ghosts.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from mri_ds.augment.frame import Arrays, Frame, Matrices

GHOSTS = (2, 10)  # fewest and most


def along_lines(image: Tensor, matrices: Matrices) -> Tensor:
    """(C, D, H, W) with the lines along each axis multiplied by that axis's matrices (C, n, n); None changes nothing."""
    along_d, along_h, along_w = (None if m is None else torch.from_numpy(m).to(image) for m in matrices)
    if along_d is not None:
        image = (along_d @ image.flatten(2)).unflatten(2, image.shape[2:])
    if along_h is not None:
        image = along_h[:, None] @ image
    if along_w is not None:
        image = image @ along_w[:, None].mT
    return image


def one_after_another(first: Matrices, second: Matrices) -> Matrices:
    """The matrices of both operations in one."""
    return [b if a is None else a if b is None else b @ a for a, b in zip(first, second)]


def draw_blur(rng: np.random.Generator, frame: Frame, blur_mm: float) -> Arrays:
    """Standard deviation of a Gaussian in voxels, of 0..blur_mm each, (C, 3)."""
    return (rng.uniform(0, blur_mm, size=(frame.num_channels, 3)) / frame.spacing_mm,)


def blur_lines(shape: Sequence[int], sigma: np.ndarray) -> Matrices:
    """exp(-(pi k sigma / n)^2 / 2) on the k-th cosine: the transform of a Gaussian of `sigma` voxels."""
    return [_cosine_filter(np.exp(-0.5 * (np.pi / n * np.arange(n) * sigma[:, axis, None]) ** 2)) for axis, n in enumerate(shape)]


def draw_low_resolution(rng: np.random.Generator, frame: Frame, strength: float) -> Arrays:
    """How much longer voxels are along each axis, 1 to 1 + strength, (3,): the same grid for all channels."""
    return (rng.uniform(1, 1 + strength, size=3),)


def low_resolution_lines(shape: Sequence[int], factor: np.ndarray) -> Matrices:
    """Each large voxel is the mean of what it covers; between their centres it is linear again."""
    return [_coarsen(n, max(1, round(n / f)))[None] for n, f in zip(shape, factor)]


def draw_gibbs(rng: np.random.Generator, frame: Frame, strength: float) -> Arrays:
    """Share of the frequencies that is kept along each axis, 1 - strength to 1, (3,)."""
    return (1 - rng.uniform(0, strength, size=3),)


def gibbs_lines(shape: Sequence[int], kept: np.ndarray) -> Matrices:
    """A k-space that ends too early: the highest frequencies along each axis are 0."""
    return [_cosine_filter((np.arange(n) < max(1, round(share * n))).astype(float)[None]) for n, share in zip(shape, kept)]


def draw_ghosting(rng: np.random.Generator, frame: Frame, strength: float) -> Arrays:
    """The axis, the number of ghosts, and the share in 0..strength by which their k-space planes are weaker, (3,)."""
    return (np.array([rng.integers(3), rng.integers(GHOSTS[0], GHOSTS[1] + 1), rng.uniform(0, strength)]),)


def ghosting_lines(shape: Sequence[int], dice: np.ndarray) -> Matrices:
    """Every so many k-space planes are weaker, all but the central one: copies of the image, shifted by shares of its length."""
    axis, ghosts, strength = int(dice[0]), int(dice[1]), dice[2]
    n = shape[axis]
    planes = np.ones(n)
    planes[::ghosts] -= strength
    planes[n // 2] = 1
    return [frequency_filter(planes)[None] if a == axis else None for a in range(3)]


def frequency_filter(planes: np.ndarray) -> np.ndarray:
    """Weights (n,) of the n frequencies, the central one at n // 2 -> the real part of that filter as a matrix (n, n)."""
    n = len(planes)
    kernel = np.fft.ifft(np.fft.ifftshift(planes)).real
    return kernel[(np.arange(n)[:, None] - np.arange(n)) % n]


def _cosine_filter(gain: np.ndarray) -> np.ndarray:
    """Gains (C, n) of the n cosines of a line -> matrices (C, n, n)."""
    cosines = _cosines(gain.shape[1])
    return (cosines.T * gain[:, None]) @ cosines


@lru_cache(maxsize=64)
def _cosines(n: int) -> np.ndarray:
    """The orthonormal cosine transform (DCT-II), (n, n): row k is the cosine of k half periods."""
    k, x = np.arange(n)[:, None], np.arange(n)
    return np.sqrt(np.where(k == 0, 1, 2) / n) * np.cos(np.pi * k * (2 * x + 1) / (2 * n))


def _coarsen(n: int, coarse: int) -> np.ndarray:
    """A line of n voxels -> means over `coarse` equal parts -> n voxels, linear between the parts' centres; (n, n)."""
    edges = np.linspace(0, n, coarse + 1)
    voxels = np.arange(n)
    overlap = np.minimum(edges[1:, None], voxels + 1) - np.maximum(edges[:-1, None], voxels)
    means = overlap.clip(min=0) * (coarse / n)  # (coarse, n), rows sum to 1
    place = ((voxels + 0.5) * coarse / n - 0.5).clip(0, coarse - 1)
    left = np.minimum(place.astype(int), max(coarse - 2, 0))
    share = place - left
    right = np.minimum(left + 1, coarse - 1)
    return (1 - share)[:, None] * means[left] + share[:, None] * means[right]
