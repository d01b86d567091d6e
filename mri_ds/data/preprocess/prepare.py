"""From a subject as it was stored to what the network is shown, and back.

Axes: C channel, K class, D H W voxels; lengths in mm.
bias correction (optional) -> one range of intensities -> the body's box (optional) -> one voxel size.
Intensities come first, so that they are measured on what was scanned: neither cropping nor the network's grid changes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mri_ds.config import DataConfig, Intensity, Triple
from mri_ds.data.preprocess.back import WayBack, top_two
from mri_ds.data.preprocess.bias_field import correct_bias
from mri_ds.data.preprocess.foreground import Box, crop, foreground_box
from mri_ds.data.preprocess.grid import to_grid
from mri_ds.data.preprocess.intensities import normalize
from mri_ds.data.preprocess.resample import resample
from mri_ds.sample import Sample


@dataclass(frozen=True)
class Placement:
    """Where a prepared sample lies in the subject's own grid: what is needed to bring predictions back."""

    shape: Triple  # of the subject's own grid
    box: Box  # the part of it that the prepared grid covers


def settings(data: DataConfig) -> dict[str, Any]:
    """The keywords of `prepare`, from a config without "auto". Training and inference both take them from here.

    >>> sorted(settings(DataConfig(spacing_mm=(1, 1, 1))))
    ['bias_correction', 'clip_percentiles', 'crop_margin_mm', 'intensities', 'spacing_mm']
    """
    assert data.spacing_mm != "auto", "resolve `auto` with preprocess.propose first"
    assert data.normalization == "subject" or data.intensities, "fill them in with preprocess.dataset_intensities first"
    return {
        "spacing_mm": data.spacing_mm,
        "clip_percentiles": data.clip_percentiles,
        "intensities": data.intensities if data.normalization == "dataset" else [],
        "crop_margin_mm": data.crop_margin_mm,
        "bias_correction": data.bias_correction,
    }


def prepare(sample: Sample, **chosen: Any) -> Sample:
    """Canonical sample -> the network's grid and intensities: `prepare(sample, **settings(config.data))`."""
    return prepare_placed(sample, **chosen)[0]


def prepare_placed(
    sample: Sample,
    *,
    spacing_mm: Sequence[float],
    clip_percentiles: tuple[float, float],
    intensities: Sequence[Intensity] = (),
    crop_margin_mm: float | None = None,
    bias_correction: bool = False,
) -> tuple[Sample, Placement]:
    """`prepare`, and the way back for predictions. The sample given is not changed, and no array of it is in the result.

    Memory: at most five volumes (of the image, float32) beside `sample` where the new grid is no finer than the old.
    """
    shape = sample["image"].shape[1:]
    image = correct_bias(sample["image"], sample["spacing_mm"]) if bias_correction else sample["image"]
    box: Box = (slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2]))
    if crop_margin_mm is not None:
        box = foreground_box(image, sample["spacing_mm"], crop_margin_mm)
    image = normalize(image, clip_percentiles, intensities)
    prepared = crop(Sample(**{**sample, "image": image}), box)  # type: ignore[typeddict-item]
    return to_grid(prepared, spacing_mm), Placement(shape, box)


def scores_to_shape(scores: Tensor, shape: Sequence[int]) -> Tensor:
    """Network outputs (K, D, H, W) -> (K, *shape), linearly over the same field of view; the way back from `to_grid`."""
    return resample(scores, shape)


def scores_to_labels(scores: Tensor, placement: Placement, *, excluded: np.ndarray | None = None) -> np.ndarray:
    """Network outputs (K, D', H', W') -> the best class of each voxel of the subject's own grid, (D, H, W) int16.

    Scores are brought back, not labels, so that borders are as fine as the scores are; the lowest class wins a tie, and outside
    the box all is class 0. One class at a time: memory does not grow with K. excluded (D, H, W): a class barred from a voxel,
    or -1.
    """
    barred = None if excluded is None else torch.from_numpy(excluded[placement.box]).to(scores.device)
    d, h, w = (side.stop - side.start for side in placement.box)
    way = WayBack(scores.shape[1:], (d, h, w), device=scores.device)
    labels = torch.zeros((d, h, w), dtype=torch.int16, device=scores.device)
    best = torch.full((d, h, w), -torch.inf, device=scores.device)
    for k, score in enumerate(scores):
        native = way.block(score, (0, 0), (0, d), (0, h))
        if barred is not None:
            native = native.masked_fill(barred == k, -torch.inf)
        top_two(native, (best, labels), None, k)
    whole = np.zeros(placement.shape, dtype=np.int16)
    whole[placement.box] = labels.cpu().numpy()
    return whole
