"""Values for config fields that are left to the data.

In: the manifest of the shards.  Out: plain values in mm and voxels, and the scale of intensities that all subjects share.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mri_ds.config import DataConfig, Intensity
from mri_ds.data.manifest import Manifest
from mri_ds.data.preprocess.grid import grid_shape
from mri_ds.errors import InputError

PATCH_MULTIPLE, MAX_PATCH = 8, 96
MAX_TOKENS = 2048  # of a patch at the fine token stride


def propose(
    manifest: Manifest, *, spacing_mm: Sequence[float] | None = None, patch: Sequence[int] | None = None
) -> dict[str, Any]:
    """Values for config fields that are "auto": {"spacing_mm", "patch", "token_stride"}; what is given is kept and built on.

    spacing_mm: the median of the training subjects. patch: their median volume on that grid, each axis rounded up to a
    multiple of 8, at most 96. token_stride: 4 voxels where that makes at most 2,048 tokens of a patch, else 8.
    """
    native = manifest.fingerprint
    spacing = tuple(float(s) for s in spacing_mm or native.median_spacing_mm)
    if patch is None:
        shape = grid_shape(native.median_shape, native.median_spacing_mm, spacing)
        patch = [min(MAX_PATCH, math.ceil(n / PATCH_MULTIPLE) * PATCH_MULTIPLE) for n in shape]
    num_tokens = math.prod(math.ceil(n / 4) for n in patch)
    stride = 4 if num_tokens <= MAX_TOKENS else 8
    return {"spacing_mm": spacing, "patch": tuple(patch), "token_stride": (stride, stride, stride)}


def dataset_intensities(data: DataConfig, manifest: Manifest, *, where: str | Path = "") -> list[Intensity]:
    """What `data.intensities` should be: as it is, but for normalization: dataset, where it is left empty, from the fingerprint.

    One Intensity per channel: clipped to the percentiles of the training subjects' foreground, then its mean and standard
    deviation, as nnU-Net does for CT. Raises InputError where the shards do not hold them, or as many as there are channels.
    """
    if data.normalization == "subject":
        return data.intensities
    found = data.intensities or [_pooled(one, data, where) for one in manifest.fingerprint.foreground]
    if len(found) != len(manifest.channels):
        what = f"normalization: dataset needs intensities of {len(manifest.channels)} channel(s), and there are {len(found)}"
        raise InputError(what, where=where, fix="shard the data again, or set data.normalization=subject")
    return found


def _pooled(channel: Any, data: DataConfig, where: str | Path) -> Intensity:
    """One channel of the fingerprint: mean, std and {"99.5": value}."""
    missing = [f"{p:g}" for p in data.clip_percentiles if f"{p:g}" not in channel.percentiles]
    if missing:
        what = f"the fingerprint has no percentile {missing[0]} for data.clip_percentiles"
        raise InputError(what, where=where, fix=f"use two of {', '.join(channel.percentiles)}")
    low, high = (channel.percentiles[f"{p:g}"] for p in data.clip_percentiles)
    return Intensity(low=low, high=high, mean=channel.mean, std=channel.std or 1.0)
