"""Smooth random fields: the source of every shape, texture and shading of a synthetic subject.

Axes: (n, n, n) voxels of the isotropic grid. Lengths in mm.
Uses no BLAS, so that the same draws give the same bytes on any number of threads.
Source: uniform cubic B-splines, Unser 1999 (IEEE Signal Processing Magazine 16:22), eq. 4.
"""

import math

import numpy as np

FOV_MM = 190.0  # edge of the field of view, whatever the number of voxels
_MEAN_SQUARE = 151 / 315  # integral of the squared cubic B-spline: the variance that one axis leaves of white noise


def smooth_field(rng: np.random.Generator, size: int, knot_mm: float) -> np.ndarray:
    """A random field (size, size, size) float32 of mean 0 and variance 1 that varies over about `knot_mm`.

    White noise on knots `knot_mm` apart, interpolated by cubic B-splines: the same draws give the same field at any `size`.
    Zero crossings lie about 2.6 knots apart.
    """
    num_spans = math.ceil(FOV_MM / knot_mm)
    first, weights = _basis(size, knot_mm)
    field = rng.standard_normal((num_spans + 3,) * 3, dtype=np.float32)
    for axis in range(3):
        shape = [1, 1, 1]
        shape[axis] = size
        field = sum(weights[k].reshape(shape) * np.take(field, first + k, axis=axis) for k in range(4))
    return field / np.float32(_MEAN_SQUARE**1.5)


def _basis(size: int, knot_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """First knot of each voxel (size,) int and the weights of its four knots (4, size) float32."""
    position = (np.arange(size) + 0.5) * (FOV_MM / knot_mm / size)
    first = position.astype(int)
    t = position - first
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6
    return first, weights.astype(np.float32)
