"""Interpolation, one axis after another; along each it is a product with a small matrix.

Axes: C channel, D H W voxels, n voxels of one axis before and m after.
In: (C, D, H, W) float32.  Out: (C, *shape), over the same field of view.
One convention for every order: the centre of new voxel j lies at (j + 1/2) n / m - 1/2 in old voxels, and beyond the border the
outermost voxel is repeated. That is torch's align_corners=False, scipy.ndimage.zoom's grid_mode=True with mode="nearest", and a
SimpleITK resampling between two images with the same corners.
An axis that loses more than a third of its voxels is averaged over one new voxel's length first, or it would alias.
Orders: 0 nearest, 1 linear, 3 cubic B-spline through the samples (Unser 1999, "Splines: a perfect fit").
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from scipy.linalg import solve_banded
from scipy.ndimage import find_objects
from torch import Tensor

LINEAR = (1, 1, 1)
ANTIALIAS_FROM = 1.5  # old voxels per new voxel
TIE = 1e-6  # shares that differ by less are equal: rounding must not choose a class
SPLINE_REACH = 12  # voxels beyond which a sample's weight in the spline is under 2e-7 (0.27 ** 12), and padding suffices


def resample(image: Tensor, shape: Sequence[int], orders: Sequence[int] = LINEAR) -> Tensor:
    """(C, D, H, W) float32, finite -> (C, *shape), `orders` along the three axes. What has that shape already is returned as is.

    Needs the result, and beside it two volumes of one channel at most.
    """
    if tuple(image.shape[1:]) == tuple(shape):
        return image
    weights = volume_weights(image.shape[1:], shape, orders, device=image.device)
    result = image.new_empty((image.shape[0], *shape))
    for channel, target in zip(image, result):
        target.copy_(apply_weights(channel, weights))
    return result


def resample_labels(labels: np.ndarray, shape: Sequence[int], orders: Sequence[int] = LINEAR) -> np.ndarray:
    """(D, H, W) integers from 0 -> shape, of the same type and values: where classes meet, the one with the largest share wins.

    Orders 0 and 1. A class's share is its mask, resampled; on a tie the lowest class wins. One class at a time and only about its
    own voxels, so that memory stays at a few volumes whatever the number of classes.
    """
    if labels.shape == tuple(shape):
        return labels.copy()
    weights = volume_weights(labels.shape, shape, orders)
    source = torch.from_numpy(labels)
    result, best = torch.zeros(tuple(shape), dtype=source.dtype), torch.zeros(tuple(shape))
    everywhere = tuple(slice(0, n) for n in labels.shape)
    for value, box in enumerate([everywhere, *find_objects(labels)]):
        if box is None:  # no voxel of this class
            continue
        parts = [_part(w, of) for w, of in zip(weights, box)]
        there = tuple(new for new, _ in parts)
        share = apply_weights((source[box] == value).float(), [w for _, w in parts])
        highest = best[there]  # a view, as is result[there]; a mask as an index would cost six volumes
        result[there].masked_fill_(share > highest + TIE, value)
        torch.maximum(highest, share, out=highest)
        del share, highest  # before the next class needs as much again
    return result.numpy()


def volume_weights(
    old: Sequence[int], new: Sequence[int], orders: Sequence[int], *, device: torch.device | str = "cpu"
) -> list[Tensor | None]:
    """One matrix per axis, None for an axis that stays as it is."""
    return [axis_weights(n, m, order).to(device) if n != m else None for n, m, order in zip(old, new, orders)]


def apply_weights(volume: Tensor, weights: Sequence[Tensor | None]) -> Tensor:
    """(D, H, W) -> (D', H', W') by one matrix (m, n) per axis. The axis that shrinks most comes first: the rest costs less."""
    moving = [(w.shape[0] / w.shape[1], axis, w) for axis, w in enumerate(weights) if w is not None]
    for _, axis, matrix in sorted(moving, key=lambda item: item[0]):
        volume = _along(volume, matrix, axis)
    return volume


def _part(weights: Tensor | None, box: slice) -> tuple[slice, Tensor | None]:
    """The new voxels that old voxels `box` of one axis reach, and the part of the matrix that tells how."""
    if weights is None:
        return box, None
    reached = torch.nonzero(weights[:, box].any(dim=1)).flatten()
    new = slice(int(reached[0]), int(reached[-1]) + 1) if len(reached) else slice(0, 0)
    return new, weights[new, box]


@lru_cache(maxsize=32)
def axis_weights(n: int, m: int, order: int) -> Tensor:
    """What each of n voxels counts for in each of m new ones: (m, n) float32, every row sums to 1. Shared: never write to it.

    Order 0 where voxels are merged is linear: after averaging, the mean over a thick slice is that of all its thin ones.

    >>> axis_weights(2, 4, 1).tolist()
    [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    """
    is_merging = n > ANTIALIAS_FROM * m
    weights = {0: _nearest, 1: _linear, 3: _cubic}[max(order, 1) if is_merging else order](n, m)
    return torch.from_numpy(weights @ _averaging(n, n / m) if is_merging else weights).float()


def _along(volume: Tensor, weights: Tensor, axis: int) -> Tensor:
    """One axis of (D, H, W). Plain matrix products on views: no transposed copy of the volume is made."""
    d, h, w = volume.shape
    m = weights.shape[0]
    if axis == 0:
        return (weights @ volume.reshape(d, h * w)).view(m, h, w)
    if axis == 2:
        return (volume.reshape(d * h, w) @ weights.T).view(d, h, m)
    result = volume.new_empty((d, m, w))
    for i in range(d):
        torch.mm(weights, volume[i], out=result[i])
    return result


# ---- the rows of the matrices, float64 -----------------------------------------------------------------------------


def _centres(n: int, m: int) -> np.ndarray:
    return (np.arange(m) + 0.5) * n / m - 0.5


def _nearest(n: int, m: int) -> np.ndarray:
    index = (2 * np.arange(m) + 1) * n // (2 * m)  # whole numbers: half-way goes up, and never to rounding
    return np.eye(n)[index]


def _linear(n: int, m: int) -> np.ndarray:
    centre = _centres(n, m)
    first = np.floor(centre).astype(np.int64)
    share = centre - first
    return _rows(first[:, None] + [0, 1], np.stack([1 - share, share], axis=1), n)


def _cubic(n: int, m: int) -> np.ndarray:
    """A cubic B-spline through the samples: solve for its coefficients, then add up the four that reach a new voxel."""
    centre = _centres(n, m) + SPLINE_REACH
    first = np.floor(centre).astype(np.int64)
    t = centre - first
    basis = np.stack([(1 - t) ** 3, 4 - 6 * t**2 + 3 * t**3, 1 + 3 * t + 3 * t**2 - 3 * t**3, t**3], axis=1) / 6
    padded = n + 2 * SPLINE_REACH
    band = np.array([[1 / 6], [4 / 6], [1 / 6]]).repeat(padded, axis=1)
    band[0, 1] = band[2, -2] = 2 / 6  # mirrored at the far ends of the padding
    repeated = np.eye(n)[np.arange(-SPLINE_REACH, n + SPLINE_REACH).clip(0, n - 1)]
    return _rows(first[:, None] + [-1, 0, 1, 2], basis, padded) @ solve_banded((1, 1), band, repeated)


def _averaging(n: int, width: float) -> np.ndarray:
    """(n, n): the mean over `width` voxels about each; the window cuts through the two outermost."""
    reach = math.ceil((width - 1) / 2)
    share = np.ones(2 * reach + 1)
    share[[0, -1]] = (width - (2 * reach - 1)) / 2
    places = np.arange(n)[:, None] + np.arange(-reach, reach + 1)
    return _rows(places, np.broadcast_to(share / width, places.shape), n)


def _rows(places: np.ndarray, weights: np.ndarray, n: int) -> np.ndarray:
    """Weights (m, taps) put at places (m, taps) of rows of length n; a place beyond the border is the border."""
    rows = np.zeros((len(places), n))
    np.add.at(rows, (np.arange(len(places))[:, None], places.clip(0, n - 1)), weights)
    return rows
