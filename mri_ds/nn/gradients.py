"""Differential features: what changes from voxel to voxel, per millimetre, and from channel to channel.

Axes: B batch, C channel, D H W voxels, n voxels along one axis.
In: image (B, C, D, H, W), spacing_mm (B, 3) or None (1 mm).  Out: (B, C', D, H, W), in this order:
C the image, 3 C its derivatives per mm after Gaussian smoothing at the first scale (all along D, then H, then W),
C gradient magnitudes per further scale, C - 1 differences between consecutive channels (time points or sequences).

Each one-dimensional filter is a banded (n, n) matrix product: on a CPU at 64^3 twice as fast as shifting and adding and twenty
times as conv3d, and the border rule and a spacing of its own for every sample cost nothing. There are no parameters, and no
graph is recorded unless the image requires gradients.
Source: Lindeberg 1994 (scale space); definition and border (mode="nearest": the edge voxel goes on) as
scipy.ndimage.gaussian_filter with truncate=6. One difference: derivative weights are scaled so that a linear ramp gives its
slope exactly. Where sigma is at least one voxel that changes less than 1e-6; below (thick slices), scipy's sampled weights
lose most of the slope.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from mri_ds.nn.slabs import Map, Planes, is_large

TRUNCATE = 6.0  # sigmas; a wider band costs nothing here
MIN_SIGMA = 0.1  # voxels; below it smoothing is the identity and the derivative a central difference, to rounding


class DifferentialFeatures(nn.Module):
    """Stacks the image with its spatial derivatives at physical scales and its differences between channels.

    scales_mm: standard deviations of the Gaussians; the first gives the derivatives, the others gradient magnitudes.

    >>> features = DifferentialFeatures(2, [1.0, 2.0])
    >>> features.out_channels, features(torch.zeros(1, 2, 8, 8, 8), None).shape
    (11, torch.Size([1, 11, 8, 8, 8]))
    """

    def __init__(self, in_channels: int, scales_mm: Sequence[float] = (1.0, 2.0)) -> None:
        super().__init__()
        if not scales_mm or min(scales_mm) <= 0:
            raise ValueError(f"scales_mm needs at least one positive scale, got {list(scales_mm)}")
        self.scales_mm = tuple(float(scale) for scale in scales_mm)
        self.out_channels = in_channels * (4 + len(self.scales_mm) - 1) + in_channels - 1

    def forward(self, image: Tensor, spacing_mm: Tensor | None = None) -> Map:
        """The features; of a large image (nn/slabs.py) they are made as they are read."""
        shape = (len(image), self.out_channels, *image.shape[2:])
        if is_large(shape):
            return Planes(shape, lambda a, b: self._planes(image, spacing_mm, slice(a, b)))
        return self._planes(image, spacing_mm, slice(None))

    def _planes(self, image: Tensor, spacing_mm: Tensor | None, planes: slice) -> Tensor:
        precise = torch.promote_types(image.dtype, torch.float32)
        with _full_precision(image.device.type):
            itself = image[:, :, planes].to(precise)
            first, *further = (gaussian_gradient(image, scale, spacing_mm, planes) for scale in self.scales_mm)
            magnitudes = [magnitude(gradient) for gradient in further]
            return torch.cat([itself, *first, *magnitudes, itself[:, 1:] - itself[:, :-1]], dim=1).to(image.dtype)


def gaussian_gradient(
    image: Tensor, scale_mm: float, spacing_mm: Tensor | None = None, planes: slice = slice(None)
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives (per mm, each (B, C, D, H, W)) of the image along D, H and W after smoothing by a Gaussian of `scale_mm`.

    Computed in float32 at least. planes: those along D that are wanted.
    """
    if spacing_mm is None:
        spacing_mm = torch.ones(len(image), 3, device=image.device)
    precise = torch.promote_types(image.dtype, torch.float32)
    (smooth_d, slope_d), (smooth_h, slope_h), (smooth_w, slope_w) = (
        [matrix.to(precise) for matrix in gaussian_matrices(size, scale_mm, spacing_mm[:, axis])]
        for axis, size in enumerate(image.shape[2:])
    )
    if planes != slice(None):
        smooth_d, slope_d = smooth_d[:, planes], slope_d[:, planes]
        reached = (smooth_d != 0).any(dim=1).any(dim=0).nonzero()  # columns: the planes that the filters read
        near = slice(int(reached[0]), int(reached[-1]) + 1)
        image, smooth_d, slope_d = image[:, :, near], smooth_d[:, :, near], slope_d[:, :, near]
    image = image.to(precise)
    smoothed, sloped = _along_d(smooth_d, image), _along_d(slope_d, image)
    return (
        _along_w(smooth_w, _along_h(smooth_h, sloped)),
        _along_w(smooth_w, _along_h(slope_h, smoothed)),
        _along_w(slope_w, _along_h(smooth_h, smoothed)),
    )


def magnitude(gradient: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Length of the vector; flat regions have length and gradient 0 (a bare square root would give NaN there)."""
    d, h, w = gradient
    return (d * d + h * h + w * w).clamp(min=torch.finfo(d.dtype).tiny).sqrt()


def gaussian_matrices(size: int, scale_mm: float, spacing_mm: Tensor) -> tuple[Tensor, Tensor]:
    """Smoothing and derivative (per mm) along an axis of `size` voxels with spacing (B,): two float64 matrices (B, size, size).

    Row i holds the weights that make output voxel i. Weights that fall beyond an edge are added to the edge voxel's.
    """
    sigma = (scale_mm / spacing_mm.to(torch.float64)).clamp(min=MIN_SIGMA)[:, None]
    reach = 4 * size  # beyond any radius in use, and free of the values of `spacing_mm`, which may live on a GPU
    tap = torch.arange(-reach, reach + 1, device=spacing_mm.device, dtype=torch.float64)
    weight = torch.exp(-0.5 * (tap / sigma).square()) * (tap.abs() <= (TRUNCATE * sigma + 0.5).floor())
    smooth = weight / weight.sum(-1, keepdim=True)
    slope = tap * weight
    slope = slope / (slope * tap).sum(-1, keepdim=True) / spacing_mm[:, None]
    return _banded(smooth, size, reach), _banded(slope, size, reach)


def _full_precision(device_type: str) -> AbstractContextManager:
    """Autocast off, where there is one (the meta device has none): half precision would drown small slopes in rounding."""
    is_available = torch.amp.is_autocast_available(device_type)
    return torch.autocast(device_type, enabled=False) if is_available else nullcontext()


def _banded(weights: Tensor, size: int, reach: int) -> Tensor:
    """Weights (B, 2 * reach + 1) of taps -reach..reach -> (B, size, size), tails folded onto the first and last column."""
    voxel = torch.arange(size, device=weights.device)
    matrix = weights[:, voxel[None] - voxel[:, None] + reach]
    up_to = weights.cumsum(-1)
    matrix[:, :, 0] = up_to[:, reach - voxel]
    matrix[:, :, -1] += up_to[:, -1:] - up_to[:, reach + size - 1 - voxel]
    return matrix


def _along_d(matrix: Tensor, image: Tensor) -> Tensor:
    return (matrix[:, None] @ image.flatten(3)).unflatten(3, image.shape[3:])


def _along_h(matrix: Tensor, image: Tensor) -> Tensor:
    return matrix[:, None, None] @ image


def _along_w(matrix: Tensor, image: Tensor) -> Tensor:
    return (image.flatten(1, 3) @ matrix.mT).view_as(image)
