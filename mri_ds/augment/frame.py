"""What every variation is made of: what its dice may know (`Frame`), and one row of the table of variations (`Augment`).

Axes: C channel, D H W voxels of the result.
A row says which knobs it has, how its dice fall, and what they do. The dice are plain arrays, so that a sample's params can be
stored, compared and applied again on another device.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Triple = tuple[int, int, int]
Arrays = tuple[np.ndarray, ...]
Matrices = list[np.ndarray | None]  # one per axis of (D, H, W): (C, n, n) acting on the lines along it, or None for no change


@dataclass(frozen=True)
class Frame:
    """The result that dice are drawn for: its size in voxels, their size in mm, its channels, the axes that may be flipped."""

    shape: Triple
    spacing_mm: tuple[float, float, float]
    num_channels: int
    flip_axes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Augment:
    """One kind of variation. With all its knobs at 0 it is left out.

    draw(rng, frame, *knobs) -> arrays; () when the dice come to nothing. What the arrays do is one of
    apply(image (C, D, H, W), *arrays) -> image of the same shape, a new tensor;
    lines(shape, *arrays) -> Matrices: linear along the axes, neighbouring rows are multiplied into one product per axis;
    neither: it says where voxels come from, and transform.apply gives it to the one resampling.
    """

    knobs: tuple[str, ...]
    draw: Callable[..., Arrays]
    apply: Callable[..., Tensor] | None = None
    lines: Callable[..., Matrices] | None = None


def per_channel(values: np.ndarray, image: Tensor) -> Tensor:
    """(C,) -> (C, 1, 1, 1) of the image's type and device, to be broadcast over its voxels."""
    return torch.from_numpy(values).to(image)[:, None, None, None]
