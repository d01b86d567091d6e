"""A network that sees patches, applied to a volume of any size.

Axes: B windows of one call, C input channels, K output channels, D H W voxels.
In: image (1, C, D, H, W) and a callable over (B, C, *patch).  Out: the callable's dictionary, for the whole volume.
Overlapping windows are blended with Gaussian weights (sigma = patch / 8), because a voxel near a window's edge was seen with less
context. Window places, weights and order depend on the shapes alone: the same volume gives the same result.
Source: Isensee et al. 2021 (nnU-Net), supplementary note 4; window places and weights are those of MONAI's inferer.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

ALL = slice(None)
Corner = tuple[int, ...]  # first voxel of a window
SIGMA_SCALE = 0.125  # of the patch's length, per axis
MIN_WEIGHT = 1e-3  # a corner's own product of three Gaussians (1e-11) would blend by rounding error


def sliding_window(
    fn: Callable[[Tensor], Mapping[str, Tensor]],
    image: Tensor,
    *,
    patch: Sequence[int],
    overlap: float = 0.5,
    window_batch: int = 1,
    pad_value: float = 0.0,
) -> dict[str, Tensor]:
    """Applies `fn` to windows that cover `image` (1, C, D, H, W) and joins what it returns.

    fn: (B, C, *patch) -> dictionary of (B, K, *patch), blended to (1, K, D, H, W) float32, and of any other (B, ...), averaged
    over the windows to (1, ...). overlap 0..1 (excluded) is the share of a window that the next one covers again; window_batch
    is the largest B. A volume smaller than the patch is padded on both sides with `pad_value`, and the output cropped back; one
    that fits into the patch costs exactly one call.

    >>> ones = sliding_window(lambda x: {"y": x * 0 + 1}, torch.rand(1, 2, 5, 9, 7), patch=(4, 4, 4))
    >>> tuple(ones["y"].shape), bool((ones["y"] - 1).abs().max() < 1e-6)
    ((1, 2, 5, 9, 7), True)
    """
    padded, before, calls = cover(image, patch, overlap, window_batch, pad_value)
    weight = gaussian_weight(patch, device=image.device)

    blended: dict[str, Tensor] = {}  # weighted sums over the windows
    averaged: dict[str, Tensor] = {}  # plain sums over the windows
    total = padded.new_zeros(padded.shape[2:], dtype=torch.float32)
    for call in calls:
        places = [tuple(slice(c, c + p) for c, p in zip(corner, patch)) for corner in call]
        outputs = fn(torch.cat([padded[(ALL, ALL, *place)] for place in places]))
        for name, output in outputs.items():
            if output.ndim == 5:
                _add_blended(blended, name, output, places, weight, total.shape)
            else:
                averaged[name] = averaged.get(name, 0) + output.float().sum(dim=0, keepdim=True)
        for place in places:
            total[place] += weight

    crop = (ALL, ALL, *(slice(b, b + n) for b, n in zip(before, image.shape[2:])))
    num_windows = sum(len(call) for call in calls)
    return {name: sums.div_(total)[crop] for name, sums in blended.items()} | {
        name: sums / num_windows for name, sums in averaged.items()
    }


def cover(
    image: Tensor, patch: Sequence[int], overlap: float, window_batch: int, pad_value: float
) -> tuple[Tensor, list[int], list[list[Corner]]]:
    """The image, padded where it is shorter than the patch; how much before each axis; the windows' corners, call by call.

    Raises ValueError as `sliding_window` does.
    """
    if image.ndim != 5 or image.shape[0] != 1 or len(patch) != 3:
        raise ValueError(f"image {tuple(image.shape)}, patch {tuple(patch)}: give (1, C, D, H, W) and three edge lengths")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap {overlap} is outside 0..1: give the shared part of neighbouring windows, as 0.5")
    before = [max(p - n, 0) // 2 for n, p in zip(image.shape[2:], patch)]
    padded = _pad_to(image, patch, before, pad_value)
    corners = window_corners(padded.shape[2:], patch, overlap)
    size = max(window_batch, 1)
    return padded, before, [corners[i : i + size] for i in range(0, len(corners), size)]


def window_corners(shape: Sequence[int], patch: Sequence[int], overlap: float) -> list[Corner]:
    """First voxels of the windows over a volume at least as large as the patch; the last window of an axis ends at its border.

    >>> window_corners((10, 4, 4), (4, 4, 4), overlap=0.5)
    [(0, 0, 0), (2, 0, 0), (4, 0, 0), (6, 0, 0)]
    """
    axes = []
    for length, edge in zip(shape, patch):
        step = max(int(edge * (1 - overlap)), 1)
        count = math.ceil((length - edge) / step) + 1
        axes.append([min(i * step, length - edge) for i in range(count)])
    return list(itertools.product(*axes))


def gaussian_weight(patch: Sequence[int], *, device: torch.device | str = "cpu") -> Tensor:
    """How much each voxel of a window counts, (D, H, W) float32: 1 at most, in the centre, and never below MIN_WEIGHT."""
    axes = []
    for edge in patch:
        offset = torch.arange(edge, dtype=torch.float32, device=device) - (edge - 1) / 2
        axes.append(torch.exp(-(offset**2) / (2 * (SIGMA_SCALE * edge) ** 2)))
    weight = axes[0][:, None, None] * axes[1][:, None] * axes[2]
    return weight.clamp_min(MIN_WEIGHT)


def _pad_to(image: Tensor, patch: Sequence[int], before: Sequence[int], value: float) -> Tensor:
    """Pads the short axes up to the patch; F.pad counts from the last axis."""
    widths: list[int] = []
    for length, edge, first in reversed(list(zip(image.shape[2:], patch, before))):
        widths += [first, max(edge - length, 0) - first]
    return F.pad(image, widths, value=value) if any(widths) else image


def _add_blended(
    sums: dict[str, Tensor], name: str, output: Tensor, places: list[tuple[slice, ...]], weight: Tensor, shape: Sequence[int]
) -> None:
    assert output.shape[2:] == weight.shape, f"{name}: output {tuple(output.shape)} is off the patch's grid {tuple(weight.shape)}"
    if name not in sums:
        sums[name] = torch.zeros(1, output.shape[1], *shape, device=output.device)
    for window, place in zip(output.float().split(1), places):
        sums[name][(ALL, ALL, *place)] += window * weight
