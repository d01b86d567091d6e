"""One random variation of a training sample: first the dice, then the deed.

Axes: C channel, D H W voxels.
In: image (C, D, H, W) float32, labels {task: (D, H, W) integer}.  Out: the same, varied; image and labels move together.
`sample_params` draws everything from one generator into plain arrays; `apply` is a pure function of them: same params, same
result. All motion is one resampling (spatial.py); intensities follow (intensity.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mri_ds.augment.intensity import INTENSITIES, Arrays
from mri_ds.augment.spatial import Triple, draw_control_points, draw_matrix, resample


@dataclass(frozen=True)
class AugmentParams:
    """The dice of one sample. With nothing but a shape it is the identity."""

    shape: Triple  # of the result, voxels
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    flips: tuple[int, ...] = ()  # axes of (D, H, W)
    matrix: np.ndarray | None = None  # (3, 3), mm to mm
    control_mm: np.ndarray | None = None  # (3, k, k, k), displacements of the control points
    intensity: dict[str, Arrays] = field(default_factory=dict)  # rows of INTENSITIES -> what they drew

    @property
    def is_spatial(self) -> bool:
        return bool(self.flips) or self.matrix is not None or self.control_mm is not None


def sample_params(
    rng: np.random.Generator,
    *,
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    num_channels: int,
    flip_axes: Sequence[int] = (),
    rotate_deg: float = 15.0,
    scale: float = 0.1,
    elastic_mm: float = 5.0,
    elastic_grid_mm: float = 24.0,
    affine_prob: float = 0.7,
    elastic_prob: float = 0.3,
    flip_prob: float = 0.5,
    intensity: float = 1.0,
) -> AugmentParams:
    """Draws one variation for a result of `shape` voxels of `spacing_mm`.

    rotate_deg is the largest angle about each axis, scale the largest relative zoom, elastic_mm the largest displacement of a
    control point (they are elastic_grid_mm apart), flip_axes the axes along which left and right may be exchanged, intensity a
    factor on the strength of every row of INTENSITIES. A strength of 0 leaves its transform out. With the default chances
    0.3 x 0.7 = 21 % of samples keep their place untouched (where no flips are allowed).

    >>> params = sample_params(np.random.default_rng(0), shape=(8, 8, 8), spacing_mm=(1, 1, 1), num_channels=1)
    >>> image, labels = apply(torch.zeros(1, 8, 8, 8), {"tissue": torch.zeros(8, 8, 8, dtype=torch.int16)}, params)
    >>> tuple(image.shape), labels["tissue"].dtype
    ((1, 8, 8, 8), torch.int16)
    """
    d, h, w = shape
    sd, sh, sw = (float(s) for s in spacing_mm)
    is_affine, is_elastic = rng.random(2) < (affine_prob, elastic_prob)
    flips = tuple(axis for axis in flip_axes if rng.random() < flip_prob)
    matrix = control_mm = None
    if is_affine and (rotate_deg or scale):
        matrix = draw_matrix(rng, rotate_deg=rotate_deg, scale=scale)
    if is_elastic and elastic_mm:
        control_mm = draw_control_points(rng, shape=shape, spacing_mm=spacing_mm, elastic_mm=elastic_mm, grid_mm=elastic_grid_mm)
    drawn = {
        name: row.draw(rng, num_channels, intensity * row.strength)
        for name, row in INTENSITIES.items()
        if rng.random() < row.prob and intensity
    }
    return AugmentParams((d, h, w), (sd, sh, sw), flips, matrix, control_mm, drawn)


def apply(
    image: Tensor,
    labels: Mapping[str, Tensor],
    params: AugmentParams,
    *,
    start: Sequence[int] = (0, 0, 0),
    fill: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The variation `params` of a sample: image (C, *params.shape), labels {task: (*params.shape)}; inputs are left alone.

    A source larger or smaller than params.shape is cropped or padded in the same resampling: the result's first voxel is source
    voxel `start`. What lies beyond the source is `fill` in the image and 0 in the labels.
    """
    maps = torch.stack(list(labels.values())) if labels else image.new_zeros((0, *image.shape[1:]))
    image, maps = resample(
        image,
        maps,
        start=start,
        shape=params.shape,
        spacing_mm=params.spacing_mm,
        matrix=params.matrix,
        control_mm=params.control_mm,
        fill=fill,
    )
    if params.flips:
        axes = [axis + 1 for axis in params.flips]
        image, maps = image.flip(axes), maps.flip(axes)
    for name, arrays in params.intensity.items():
        image = INTENSITIES[name].apply(image, *arrays)
    return image, dict(zip(labels, maps))
