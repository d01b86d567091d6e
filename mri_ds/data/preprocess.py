"""From a subject as it was stored to what the network is shown, and back.

Axes: C channel, K class, D H W voxels; lengths in mm.
canonical orientation -> one voxel size for all subjects -> one range of intensities; `scores_to_shape` is the way back.
Resampling keeps the field of view (torch's align_corners=False): the first voxel's outer edge stays where it is, and the affine
follows. An axis that loses more than a third of its voxels is averaged over one new voxel's length first, or it would alias.
Intensities: clip to percentiles, then z-score, both over the voxels that are not background (Isensee et al. 2021, nnU-Net).
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mri_ds.config import Triple
from mri_ds.data.manifest import Manifest
from mri_ds.errors import InputError
from mri_ds.sample import Sample

SAME_SPACING = 1e-3  # relative difference that is no difference
ANTIALIAS_FROM = 1.5  # old voxels per new voxel
MIN_ZERO_SHARE = 0.1  # an image with fewer zeros has no background to leave out
PATCH_MULTIPLE, MAX_PATCH = 8, 96
MAX_TOKENS = 2048  # of a patch at the fine token stride


def prepare(sample: Sample, *, spacing_mm: Sequence[float], clip_percentiles: tuple[float, float]) -> Sample:
    """Canonical sample -> the network's grid and intensities. Training and inference both call this, so that they agree."""
    sample = to_grid(sample, spacing_mm)
    sample["image"] = normalize(sample["image"], clip_percentiles)
    return sample


# ---- orientation ---------------------------------------------------------------------------------------------------


def to_canonical(sample: Sample) -> Sample:
    """Flips and permutes the voxel axes to run closest to Right, Anterior, Superior; exact, nothing is interpolated.

    Raises InputError for an affine that gives an axis no direction.
    """
    orientation = nib.orientations.io_orientation(sample["affine"])
    if not np.isfinite(orientation).all():
        raise InputError("affine gives a voxel axis no direction", where=sample["subject_id"], fix="repair the NIfTI header")
    shape = sample["image"].shape[1:]
    affine = sample["affine"] @ nib.orientations.inv_ornt_aff(orientation, shape)
    return Sample(
        subject_id=sample["subject_id"],
        image=np.stack([_reorient(channel, orientation) for channel in sample["image"]]),
        affine=affine,
        spacing_mm=_spacing(affine),
        targets={k: _reorient(v, orientation) if isinstance(v, np.ndarray) else v for k, v in sample["targets"].items()},
    )


def _reorient(voxels: np.ndarray, orientation: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(nib.orientations.apply_orientation(voxels, orientation))


def _spacing(affine: np.ndarray) -> np.ndarray:
    return np.linalg.norm(affine[:3, :3], axis=0)


# ---- grid ----------------------------------------------------------------------------------------------------------


def to_grid(sample: Sample, spacing_mm: Sequence[float]) -> Sample:
    """Resamples to voxels of about `spacing_mm`: n voxels of s mm become max(1, round(n s / s')) that fill the same extent.

    Images linearly; labels class by class, linearly, and the class with the largest share wins (the lowest on a tie). An axis
    whose spacing is right within 0.1 % stays as it is; when all are, the result is a plain copy.
    """
    old = sample["image"].shape[1:]
    new = grid_shape(old, sample["spacing_mm"], spacing_mm)
    ratio = np.array(old) / np.array(new)
    step = np.eye(4)
    step[:3, :3] = np.diag(ratio)
    step[:3, 3] = (ratio - 1) / 2  # centre of the first new voxel, in old voxels
    affine = sample["affine"] @ step
    return Sample(
        subject_id=sample["subject_id"],
        image=_resample(torch.from_numpy(sample["image"]), new).numpy() if new != old else sample["image"].copy(),
        affine=affine,
        spacing_mm=_spacing(affine),
        targets={k: _resample_label(v, new) if isinstance(v, np.ndarray) else v for k, v in sample["targets"].items()},
    )


def grid_shape(shape: Sequence[int], old_mm: Iterable[float], new_mm: Iterable[float]) -> Triple:
    """Voxels along each axis after resampling from spacing `old_mm` to `new_mm`.

    >>> grid_shape((100, 100, 20), (1.0, 1.0, 5.0), (2.0, 1.0005, 1.0))
    (50, 100, 100)
    """
    d, h, w = (
        n if abs(old / new - 1) < SAME_SPACING else max(1, round(n * old / new)) for n, old, new in zip(shape, old_mm, new_mm)
    )
    return d, h, w


def scores_to_shape(scores: Tensor, shape: Sequence[int]) -> Tensor:
    """Network outputs (K, D, H, W) -> (K, *shape), linearly over the same field of view; the way back from `to_grid`."""
    return _resample(scores, shape)


def _resample(image: Tensor, shape: Sequence[int]) -> Tensor:
    """(C, D, H, W) -> (C, *shape), the field of view unchanged."""
    if tuple(image.shape[1:]) == tuple(shape):
        return image
    for axis, (old, new) in enumerate(zip(image.shape[1:], shape), start=1):
        if old > ANTIALIAS_FROM * new:
            image = _average(image, axis, width=old / new)
    return F.interpolate(image[None], size=tuple(shape), mode="trilinear", align_corners=False)[0]


def _average(image: Tensor, axis: int, width: float) -> Tensor:
    """Mean over a length of `width` voxels around each voxel of one axis; the border voxels are repeated outwards."""
    reach, length = math.ceil((width - 1) / 2), image.shape[axis]
    padded = image.index_select(axis, torch.arange(-reach, length + reach, device=image.device).clamp(0, length - 1))
    outermost = (width - (2 * reach - 1)) / 2  # the window cuts through these two
    total = padded.narrow(axis, 0, length).add(padded.narrow(axis, 2 * reach, length)).mul_(outermost)
    for shift in range(1, 2 * reach):
        total.add_(padded.narrow(axis, shift, length))
    return total.div_(width)


def _resample_label(label: np.ndarray, shape: Triple) -> np.ndarray:
    """(D, H, W) -> shape. One class at a time, so that memory stays at a few volumes whatever the number of classes."""
    if label.shape == shape:
        return label.copy()
    source = torch.from_numpy(label)
    result, best = torch.zeros(shape, dtype=source.dtype), torch.full(shape, -1.0)
    for value in torch.unique(source):
        share = _resample((source == value).float()[None], shape)[0]
        better = share > best + 1e-6  # rounding must not decide a tie
        result[better], best[better] = value, share[better]
    return result.numpy()


# ---- intensities ---------------------------------------------------------------------------------------------------


def normalize(image: np.ndarray, clip_percentiles: tuple[float, float] = (0.5, 99.5)) -> np.ndarray:
    """(C, D, H, W) -> float32 of the same shape: per channel clipped to the percentiles, then mean 0 and standard deviation 1.

    Percentiles, mean and deviation are those of the voxels that are not zero, or of all voxels in a channel with fewer than
    10 % zeros. Background is clipped with the rest. A constant channel becomes 0; the result is always finite.
    """
    return np.stack([_normalize_channel(channel, clip_percentiles) for channel in image])


def border_minimum(image: np.ndarray) -> float:
    """The lowest value on the six faces of (C, D, H, W): what a volume is continued with beyond its field of view."""
    faces = (np.take(image, place, axis=axis) for axis in (1, 2, 3) for place in (0, -1))
    return float(min(face.min() for face in faces))


def _normalize_channel(channel: np.ndarray, clip_percentiles: tuple[float, float]) -> np.ndarray:
    finite = np.nan_to_num(channel, nan=0.0, posinf=0.0, neginf=0.0).astype(np.float64)
    body = finite[finite != 0]
    if body.size > (1 - MIN_ZERO_SHARE) * finite.size or body.size == 0:
        body = finite
    low, high = np.percentile(body, clip_percentiles)
    body = np.clip(body, low, high)
    mean, std = body.mean(), body.std()
    if std <= 1e-6 * max(abs(low), abs(high)):  # constant, but for rounding
        return np.zeros(channel.shape, dtype=np.float32)
    return ((np.clip(finite, low, high) - mean) / std).astype(np.float32)


# ---- "auto" --------------------------------------------------------------------------------------------------------


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
