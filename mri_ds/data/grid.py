"""Whether two grids are one: the same voxels at the same places."""

from collections.abc import Sequence

import numpy as np

AFFINE_TOLERANCE_MM = 1e-2  # how far apart two files may place the same corner of a volume


def corners_apart_mm(affine: np.ndarray, other: np.ndarray, shape: Sequence[int]) -> float:
    """The most that two affines (4, 4) disagree, along any axis, on where a corner of a volume of this shape (D, H, W) lies."""
    corners = np.array(np.meshgrid(*([0, n - 1] for n in shape), [1], indexing="ij"), dtype=float).reshape(4, -1)
    return float(np.abs((affine - other) @ corners).max())


def by(shape: Sequence[int]) -> str:
    """
    >>> by((280, 320, 22))
    '280 x 320 x 22'
    """
    return " x ".join(map(str, shape))
