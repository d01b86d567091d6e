"""The box that holds the body, so that no work is spent on air.

Axes: C channel, D H W voxels; lengths in mm.
Found in the image alone, never in a label: a subject without labels is cropped as one with them. What lies outside the box is not
seen by the network, and its voxels are background in a prediction.
Source: Otsu 1979, "A threshold selection method from gray-level histograms".
"""

from collections.abc import Iterable, Sequence

import numpy as np
from scipy import ndimage

from mri_ds.data.preprocess.intensities import has_zero_background, measure
from mri_ds.sample import Sample

Box = tuple[slice, slice, slice]
BLOCK_MM = 4.0  # noise in air averages out over blocks of about this length
MIN_PART = 0.01  # of the largest connected part: what is smaller is no body
NUM_BINS = 256
ROUNDING = 1e-6  # voxels: 2 mm over 0.9999999999 mm are two of them


def foreground_box(image: np.ndarray, spacing_mm: Iterable[float], margin_mm: float) -> Box:
    """The smallest box around what is foreground in any channel of (C, D, H, W), and `margin_mm` more on every side.

    Foreground of a channel with a background of zeros (a tenth of its voxels or more): every other voxel, exactly. Of any other:
    blocks of about 4 mm with a mean above Otsu's threshold, in connected parts of at least 1 % of the largest. Where nothing is
    found, the whole volume.
    """
    edges_mm = np.array(list(spacing_mm), dtype=float)
    lows, highs = zip(*(_extent(channel, edges_mm) for channel in image))
    low, high = np.min(lows, axis=0), np.max(highs, axis=0)
    if (low >= high).any():
        low, high = np.zeros(3), np.array(image.shape[1:])
    margin = np.ceil(margin_mm / edges_mm - ROUNDING)
    low, high = np.maximum(low - margin, 0), np.minimum(high + margin, image.shape[1:])
    d, h, w = (slice(int(a), int(b)) for a, b in zip(low, high))
    return d, h, w


def crop(sample: Sample, box: Box) -> Sample:
    """The part of a sample inside `box`, every voxel where it was in the world. Views, no copies."""
    affine = sample["affine"].copy()
    affine[:3, 3] += affine[:3, :3] @ [side.start for side in box]
    return Sample(
        subject_id=sample["subject_id"],
        image=sample["image"][:, *box],
        affine=affine,
        spacing_mm=sample["spacing_mm"],
        targets={k: v[box] if isinstance(v, np.ndarray) else v for k, v in sample["targets"].items()},
    )


def otsu_threshold(values: np.ndarray, num_bins: int = NUM_BINS) -> float:
    """The border between the dark and the bright of `values`: it parts the histogram so that the two means lie furthest apart.

    The upper edge of the last dark bin; bins of equal width from the lowest value to the highest. A constant gives that constant.
    """
    counts, edges = np.histogram(values, bins=num_bins)
    centres = (edges[:-1] + edges[1:]) / 2
    dark, total = np.cumsum(counts)[:-1].astype(float), float(counts.sum())
    sums = np.cumsum(counts * centres)
    with np.errstate(invalid="ignore", divide="ignore"):  # an empty side has no mean, and is no candidate
        between = dark * (total - dark) * (sums[:-1] / dark - (sums[-1] - sums[:-1]) / (total - dark)) ** 2
    between[~np.isfinite(between)] = -1
    return float(edges[1 + between.argmax()])


def _extent(channel: np.ndarray, edges_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First voxel of the foreground and the one after its last, per axis; (shape, 0) where there is none."""
    if has_zero_background(channel):
        return _bounds(channel != 0, np.ones(3, dtype=np.int64), channel.shape)
    step = np.maximum(1, np.round(BLOCK_MM / edges_mm)).astype(np.int64)
    step = np.minimum(step, channel.shape)
    blocks = _block_means(channel, step)
    range_ = measure(blocks)  # clipped to its percentiles: one bright vessel must not stretch the histogram
    blocks = blocks.clip(range_.low, range_.high)
    return _bounds(_large_parts(blocks > otsu_threshold(blocks)), step, channel.shape)


def _block_means(channel: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Means over blocks of `step` voxels; a block at the far border is as large as is left."""
    for axis, length in enumerate(step):
        starts = np.arange(0, channel.shape[axis], length)
        sizes = np.diff([*starts, channel.shape[axis]]).reshape([-1 if a == axis else 1 for a in range(3)])
        channel = np.add.reduceat(channel, starts, axis=axis) / sizes.astype(np.float32)
    return channel


def _large_parts(mask: np.ndarray) -> np.ndarray:
    parts, count = ndimage.label(mask)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    is_large = np.concatenate([[False], sizes >= MIN_PART * sizes.max(initial=0)])
    return is_large[parts]


def _bounds(mask: np.ndarray, step: np.ndarray, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.array(shape), np.zeros(3, dtype=np.int64)
    for axis in range(3):
        places = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        if len(places):
            low[axis], high[axis] = places[0] * step[axis], min((places[-1] + 1) * step[axis], shape[axis])
    return low, high
