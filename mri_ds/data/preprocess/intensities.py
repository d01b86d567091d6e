"""One range of intensities: clip to percentiles, then mean 0 and standard deviation 1.

Axes: C channel, D H W voxels.
The numbers come from the subject itself, or from all training subjects at once where intensities mean something by themselves
(T1 or T2 maps, fractional anisotropy, CT): there a subject's mean is what one wants to see and must not be taken out.
Source: Isensee et al. 2021 (nnU-Net), supplementary note 2, "intensity normalization".
"""

from collections.abc import Iterator, Sequence

import numpy as np

from mri_ds.config import Intensity

MIN_ZERO_SHARE = 0.1  # an image with fewer zeros has no background to leave out
BLOCK = 2**20  # voxels that are held in float64 at a time


def normalize(
    image: np.ndarray,
    clip_percentiles: tuple[float, float] = (0.5, 99.5),
    intensities: Sequence[Intensity] = (),
) -> np.ndarray:
    """(C, D, H, W) -> float32 of the same shape: per channel clipped to [low, high], then (value - mean) / std.

    The four numbers are `intensities`, one per channel, or else measured on the channel itself. Background is clipped with the
    rest; NaN and infinity count as 0. A constant channel becomes 0; the result is always finite.
    Needs the result, and beside it one channel twice.
    """
    result = np.empty(image.shape, dtype=np.float32)
    for i, channel in enumerate(image):
        finite = _finite(channel)
        _rescale(finite, intensities[i] if intensities else measure(finite, clip_percentiles), out=result[i])
    return result


def measure(channel: np.ndarray, clip_percentiles: tuple[float, float] = (0.5, 99.5)) -> Intensity:
    """The percentiles of a finite channel (D, H, W), and the mean and standard deviation of what is clipped to them.

    They are those of the voxels that are not zero, or of all voxels in a channel with fewer than 10 % zeros. The deviation of a
    constant channel is told as 1.
    """
    body = _body(channel)
    low, high = _percentiles(body, clip_percentiles)
    count, total, squares = len(body), 0.0, 0.0
    for block in _blocks(body):
        total += float(block.clip(low, high).sum())
    mean = total / count
    for block in _blocks(body):
        squares += float(((block.clip(low, high) - mean) ** 2).sum())
    std = float(np.sqrt(squares / count))
    if std <= 1e-6 * max(abs(low), abs(high)):  # constant, but for rounding
        return Intensity(low=mean, high=mean, mean=mean, std=1.0)
    return Intensity(low=low, high=high, mean=mean, std=std)


def border_minimum(image: np.ndarray) -> float:
    """The lowest value on the six faces of (C, D, H, W): what a volume is continued with beyond its field of view."""
    faces = (np.take(image, place, axis=axis) for axis in (1, 2, 3) for place in (0, -1))
    return float(min(face.min() for face in faces))


def has_zero_background(channel: np.ndarray) -> bool:
    """Whether at least a tenth of the voxels, but not all, are exactly zero: what a skull-stripped or masked scan looks like."""
    zeros = channel.size - np.count_nonzero(channel)
    return bool(MIN_ZERO_SHARE * channel.size <= zeros < channel.size)


def _finite(channel: np.ndarray) -> np.ndarray:
    return channel if np.isfinite(channel).all() else np.nan_to_num(channel, nan=0.0, posinf=0.0, neginf=0.0)


def _body(channel: np.ndarray) -> np.ndarray:
    """The voxels that are measured, as a flat copy."""
    return channel[channel != 0] if has_zero_background(channel) else channel.flatten()


def _percentiles(values: np.ndarray, percents: tuple[float, float]) -> tuple[float, float]:
    """As numpy's, linearly between the two nearest; sorts `values` in part, in place."""
    places = np.array(percents) / 100 * (len(values) - 1)
    below = np.floor(places).astype(np.int64)
    above = np.minimum(below + 1, len(values) - 1)
    values.partition(np.unique([below, above]))
    start, end = values[below].astype(np.float64), values[above].astype(np.float64)
    low, high = start + (end - start) * (places - below)
    return float(low), float(high)


def _rescale(channel: np.ndarray, to: Intensity, *, out: np.ndarray) -> None:
    for values, target in zip(channel, out):  # slice by slice in float64: no volume of it is ever made
        target[...] = (np.clip(values, to.low, to.high, dtype=np.float64) - to.mean) / to.std


def _blocks(values: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(values), BLOCK):
        yield values[start : start + BLOCK].astype(np.float64)
