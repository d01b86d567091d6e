"""One voxel size for all subjects: the network's grid.

Axes: C channel, D H W voxels; lengths in mm.
Images are interpolated by cubic B-splines, labels class by class and linearly. Thick slices are dealt with apart, as nnU-Net does
(Isensee et al. 2021, supplementary note 2): where voxels are over three times as long along one axis as along the shortest,
before or after, what lies between two slices is unknown, and the nearest slice is shown instead of a blend.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from mri_ds.config import Triple
from mri_ds.data.preprocess.orientation import spacing_of
from mri_ds.data.preprocess.resample import resample, resample_labels
from mri_ds.sample import Sample

SAME_SPACING = 1e-3  # relative difference that is no difference
THICK_SLICES = 3.0  # longest over shortest edge of a voxel
CUBIC, LINEAR, NEAREST = 3, 1, 0


def to_grid(sample: Sample, spacing_mm: Sequence[float]) -> Sample:
    """Resamples to voxels of about `spacing_mm`: n voxels of s mm become max(1, round(n s / s')) that fill the same extent.

    Image values stay within the range of their channel. An axis whose spacing is right within 0.1 % stays as it is; when all are,
    the result is a plain copy.
    """
    old = sample["image"].shape[1:]
    new = grid_shape(old, sample["spacing_mm"], spacing_mm)
    affine = sample["affine"] @ _step(old, new)
    old_mm = sample["spacing_mm"].tolist()
    smooth, labelled = axis_orders(old_mm, spacing_mm, CUBIC), axis_orders(old_mm, spacing_mm, LINEAR)
    targets = {  # before the image, so that their scratch space and its are not needed at once
        name: resample_labels(target, new, labelled) if isinstance(target, np.ndarray) else target
        for name, target in sample["targets"].items()
    }
    return Sample(
        subject_id=sample["subject_id"],
        image=_resample_image(sample["image"], new, smooth),
        affine=affine,
        spacing_mm=spacing_of(affine),
        targets=targets,
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


def axis_orders(old_mm: Sequence[float], new_mm: Sequence[float], in_plane: int) -> Triple:
    """The order of interpolation along each axis: `in_plane`, but nearest across thick slices."""
    across = slice_axis(old_mm, new_mm)
    d, h, w = (NEAREST if axis == across else in_plane for axis in range(3))
    return d, h, w


def slice_axis(old_mm: Sequence[float], new_mm: Sequence[float]) -> int | None:
    """The axis across thick slices, of the old grid or else of the new one; None where there are none, or two long axes.

    >>> slice_axis((0.7, 0.7, 6.5), (1, 1, 1)), slice_axis((1, 1, 1), (5, 1, 1)), slice_axis((0.3, 1.2, 1.2), (1, 1, 1))
    (2, 0, None)
    """
    for spacing in (np.asarray(old_mm, dtype=float), np.asarray(new_mm, dtype=float)):
        if spacing.max() > THICK_SLICES * (1 + SAME_SPACING) * spacing.min():
            (longest,) = np.nonzero(spacing > spacing.max() * (1 - SAME_SPACING))
            return int(longest[0]) if len(longest) == 1 else None
    return None


def _resample_image(image: np.ndarray, shape: Triple, orders: Triple) -> np.ndarray:
    if image.shape[1:] == shape:
        return image.copy()
    resampled = resample(torch.from_numpy(image), shape, orders).numpy()
    for before, after in zip(image, resampled):  # a spline swings past a sharp edge: no darker than dark, no brighter than bright
        np.clip(after, before.min(), before.max(), out=after)
    return resampled


def _step(old: Sequence[int], new: Sequence[int]) -> np.ndarray:
    """(4, 4): voxels of the new grid -> voxels of the old one. The outer edge of the first voxel stays where it is."""
    ratio = np.array(old) / np.array(new)
    step = np.eye(4)
    step[:3, :3] = np.diag(ratio)
    step[:3, 3] = (ratio - 1) / 2  # centre of the first new voxel
    return step
