"""What normalising a channel needs to know of all its voxels, so that a crop is normalised without them.

Axes: C channel, D H W voxels.  In: one channel (D, H, W).  Out: ChannelIntensity, a few numbers in the sample's meta.json.
They are those of `preprocess.normalize` on the stored grid: percentiles of the voxels that are not background, then mean and
deviation of these voxels once they are clipped.
"""

import numpy as np
from pydantic import BaseModel

from mri_ds.config import Intensity
from mri_ds.data.distribution import Distribution
from mri_ds.data.preprocess import MIN_ZERO_SHARE

CLIPS = ((0.5, 99.5), (0.0, 100.0), (1.0, 99.0), (2.0, 98.0), (5.0, 95.0))


class Clip(BaseModel):
    """Bounds at two percentiles, and mean and population deviation of what lies between them or is put there."""

    percentiles: tuple[float, float]
    low: float
    high: float
    mean: float
    std: float


class ChannelIntensity(BaseModel):
    """One channel. `border_min` is its lowest value on the six faces of the volume, which padding continues it with."""

    body_voxels: int  # that percentiles, mean and deviation are taken over: all, or those that are not 0
    border_min: float
    clips: list[Clip]

    def clip(self, percentiles: tuple[float, float]) -> Clip | None:
        """The clip at these percentiles, or None where they are none of CLIPS."""
        return next((clip for clip in self.clips if clip.percentiles == percentiles), None)


def describe(channel: np.ndarray) -> ChannelIntensity:
    """(D, H, W) of any real type -> what is kept of it."""
    if channel.dtype.kind == "f" and not np.isfinite(channel).all():
        channel = np.nan_to_num(channel, nan=0.0, posinf=0.0, neginf=0.0)
    distribution = Distribution(body(channel))
    clips = []
    for percentiles in CLIPS:
        low, high = distribution.percentiles(percentiles)
        moments = distribution.clipped_moments(low, high)
        clips.append(Clip(percentiles=percentiles, low=low, high=high, mean=moments.mean, std=moments.std))
    faces = (np.take(channel, place, axis=axis) for axis in (0, 1, 2) for place in (0, -1))
    return ChannelIntensity(body_voxels=distribution.count, border_min=float(min(face.min() for face in faces)), clips=clips)


def scale(clip: Clip) -> Intensity:
    """A clip as what normalising takes. The deviation of a constant channel is told as 1, as preprocess.measure does."""
    if clip.std <= 1e-6 * max(abs(clip.low), abs(clip.high)):  # constant, but for rounding
        return Intensity(low=clip.mean, high=clip.mean, mean=clip.mean, std=1.0)
    return Intensity(low=clip.low, high=clip.high, mean=clip.mean, std=clip.std)


def body(channel: np.ndarray) -> np.ndarray:
    """The voxels that are not 0, or all of them in a channel with hardly any zeros or with nothing else; flat."""
    num_body = np.count_nonzero(channel)
    is_whole = num_body > (1 - MIN_ZERO_SHARE) * channel.size or num_body == 0
    return channel.ravel() if is_whole else channel[channel != 0]
