"""Whether two grids are one: how far apart they may lie, and how their shapes are told."""

from collections.abc import Sequence

AFFINE_TOLERANCE_MM = 1e-2  # how far apart two files may place the same corner of a volume


def by(shape: Sequence[int]) -> str:
    """
    >>> by((280, 320, 22))
    '280 x 320 x 22'
    """
    return " x ".join(map(str, shape))
