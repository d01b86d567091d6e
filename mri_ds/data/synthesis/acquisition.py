"""What a scan's resolution and its artefacts do to a sharp image, as one matrix per axis.

Axes: n voxels of the sharp image, m of the scan, along one axis; D H W voxels.
Slice profile (Gaussian), reading onto m voxels and back, ringing (k-space cut off), ghosts (some lines of k-space weakened): each
is linear and acts along one axis at a time, so along that axis they are one small matrix, and the voxels are multiplied once,
however many of them there are. Grids share the field of view (outer edges of the outermost voxels); edge voxels go on outwards.
Source: Billot et al. 2023, eq. 4 to 6, for the width of the profile: 2 log(10) / (2 pi) of the slice thickness, in voxels.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

PROFILE_STD = 2 * math.log(10) / (2 * math.pi)  # standard deviation of the profile, in slice thicknesses over voxel lengths
TRUNCATE = 4.0  # standard deviations at which the profile ends


@dataclass(frozen=True)
class Scan:
    """How one channel is acquired. Per axis of D H W: voxels of the scan and width of the profile in voxels of the sharp image.

    ringing: (axis, share of k-space kept) or None; ghosts: (axis, strength, number of copies) or None.
    """

    shape: tuple[int, int, int]
    profile_std: tuple[float, float, float] = (0.0, 0.0, 0.0)
    ringing: tuple[int, float] | None = None
    ghosts: tuple[int, float, int] | None = None


def to_scan(image: Tensor, scan: Scan) -> Tensor:
    """Sharp image (D, H, W) float32 -> what the scan measures, scan.shape."""
    for axis, (old, new) in enumerate(zip(image.shape, scan.shape)):
        image = _multiply(_acquire(old, new, axis, scan), image, axis)
    return image


def from_scan(image: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Linearly onto the network's grid, (D', H', W') -> shape."""
    for axis, (old, new) in enumerate(zip(image.shape, shape)):
        image = _multiply(None if old == new else linear(old, new), image, axis)
    return image


def profile(n: int, std: float) -> np.ndarray:
    """Gaussian of `std` voxels, cut at 4 of them; (n, n), rows sum to 1. An edge voxel stands for all beyond it."""
    if std <= 0:
        return np.eye(n)
    reach = int(TRUNCATE * std + 0.5)
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / std) ** 2)
    return _banded(n, taps / taps.sum(), reach)


def _banded(n: int, taps: np.ndarray, reach: int) -> np.ndarray:
    matrix = np.zeros((n, n))
    rows = np.arange(n)
    for shift, tap in zip(range(-reach, reach + 1), taps):
        np.add.at(matrix, (rows, np.clip(rows + shift, 0, n - 1)), tap)
    return matrix


def linear(n: int, m: int) -> np.ndarray:
    """n voxels read at the centres of m over the same extent; (m, n), rows sum to 1.

    >>> linear(4, 2).tolist()
    [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]
    """
    at = np.clip((np.arange(m) + 0.5) * n / m - 0.5, 0, n - 1)
    low = np.minimum(at.astype(int), max(n - 2, 0))
    matrix = np.zeros((m, n))
    np.add.at(matrix, (np.arange(m), low), 1 - (at - low))
    np.add.at(matrix, (np.arange(m), np.minimum(low + 1, n - 1)), at - low)
    return matrix


def ringing(n: int, kept: float) -> np.ndarray:
    """k-space of n samples cut to its inner share `kept`: a sharp edge rings; (n, n) circulant, the mean is kept."""
    frequencies = np.abs(np.fft.fftfreq(n)) * 2  # 0 to 1
    return _circulant(np.fft.ifft(frequencies <= kept).real)


def ghosts(n: int, strength: float, copies: int) -> np.ndarray:
    """Every `copies`-th line of k-space, but not its centre, weakened by `strength`: faint copies n / copies voxels apart."""
    weakened = np.ones(n)
    weakened[::copies] -= strength
    weakened[0] = 1.0
    return _circulant(np.fft.ifft(weakened).real)


def _circulant(kernel: np.ndarray) -> np.ndarray:
    n = len(kernel)
    return np.asarray(kernel[(np.arange(n)[:, None] - np.arange(n)) % n])


def _acquire(n: int, m: int, axis: int, scan: Scan) -> np.ndarray | None:
    """All that happens along one axis, (m, n), or None where nothing does."""
    steps = []
    if scan.profile_std[axis] > 0:
        steps.append(profile(n, scan.profile_std[axis]))
    if n != m:
        steps.append(linear(n, m))
    if scan.ghosts is not None and scan.ghosts[0] == axis:
        steps.append(ghosts(m, *scan.ghosts[1:]))
    if scan.ringing is not None and scan.ringing[0] == axis:
        steps.append(ringing(m, scan.ringing[1]))
    matrix = None
    for step in steps:
        matrix = step if matrix is None else step @ matrix
    return matrix


def _multiply(matrix: np.ndarray | None, image: Tensor, axis: int) -> Tensor:
    """matrix (m, n) along one axis of (D, H, W), which has n voxels there."""
    if matrix is None:
        return image
    weights = torch.from_numpy(matrix).to(image)
    if axis == 2:
        return image @ weights.T
    if axis == 1:
        return weights @ image
    d, h, w = image.shape
    return (weights @ image.reshape(d, h * w)).view(-1, h, w)
