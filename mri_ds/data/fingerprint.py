"""What a dataset is like, from its training subjects alone: grids, classes, and the intensities of its foreground.

Axes: C channel, D H W voxels; lengths in mm.
In: one summary per subject, in order.  Out: a Fingerprint in the manifest, which configuration and normalisation read.
Foreground are the voxels of any class but 0 of the first segmentation task; in a dataset that has none, the voxels that are not
background. Each subject counts alike in the percentiles, as in Isensee et al. 2021 (nnU-Net), who sample as many voxels of each.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from mri_ds.config import Triple
from mri_ds.data.distribution import Distribution, Moments, merge

SKETCH = tuple(i / 2 for i in range(201))  # percentiles kept of each subject
PERCENTILES = (0.0, 0.5, 1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0, 99.5, 100.0)
GRID_PERCENTILES = (0.0, 10.0, 50.0, 90.0, 100.0)

T = TypeVar("T")


class ForegroundSketch(BaseModel):
    """One channel of one subject: percentiles at SKETCH, and what mean and variance are merged from."""

    count: int
    mean: float
    m2: float  # sum of squared differences from the mean
    percentiles: list[float]


@dataclass(frozen=True)
class Summary:
    """What the statistics need to know of one subject, without its voxels."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    voxels_per_class: dict[str, list[int]]  # segmentation task -> one count per class
    values: dict[str, int | float]  # classification -> class index, regression -> value
    foreground: list[ForegroundSketch] = field(default_factory=list)  # one per channel, or none without foreground


class ChannelFingerprint(BaseModel):
    """Foreground of one channel over all subjects: mean and population deviation of all its voxels, percentiles of subjects."""

    model_config = ConfigDict(extra="forbid")
    num_voxels: int
    mean: float
    std: float
    percentiles: dict[str, float]  # "0.5": value


class Fingerprint(BaseModel):
    """Of the training subjects in canonical orientation. `spacing_mm` and `shape`: per-axis percentiles, "50" the medians."""

    model_config = ConfigDict(extra="forbid")
    median_spacing_mm: tuple[float, float, float]
    median_shape: Triple
    num_subjects: int = Field(default=0, ge=0)
    spacing_mm: dict[str, tuple[float, float, float]] = {}
    shape: dict[str, tuple[float, float, float]] = {}
    foreground: list[ChannelFingerprint] = []  # one per channel
    voxels_per_class: dict[str, list[int]] = {}  # segmentation task -> voxels of each class
    subjects_per_class: dict[str, list[int]] = {}  # segmentation task -> subjects in which each class occurs


def fingerprint(train: Sequence[Summary]) -> Fingerprint:
    """Of at least one subject. The same subjects in the same order give the same digits."""
    spacings, shapes = (np.array([getattr(s, name) for s in train], dtype=float) for name in ("spacing_mm", "shape"))
    tasks = sorted({task for s in train for task in s.voxels_per_class})
    counts = {task: np.array([s.voxels_per_class[task] for s in train if task in s.voxels_per_class]) for task in tasks}
    return Fingerprint(
        median_spacing_mm=_triple(np.median(spacings, axis=0).tolist()),
        median_shape=_triple(int(n) for n in np.floor(np.median(shapes, axis=0) + 0.5)),  # a half voxel is rounded up
        num_subjects=len(train),
        spacing_mm=_per_axis(spacings),
        shape=_per_axis(shapes),
        foreground=_foreground(train),
        voxels_per_class={task: counts[task].sum(axis=0).tolist() for task in tasks},
        subjects_per_class={task: (counts[task] > 0).sum(axis=0).tolist() for task in tasks},
    )


def sketch(voxels: np.ndarray) -> ForegroundSketch:
    """Foreground voxels of one channel, at least one, of any real type."""
    distribution = Distribution(voxels)
    moments = distribution.moments()
    return ForegroundSketch(count=moments.count, mean=moments.mean, m2=moments.m2, percentiles=distribution.percentiles(SKETCH))


def _foreground(train: Sequence[Summary]) -> list[ChannelFingerprint]:
    channels = zip(*(s.foreground for s in train if s.foreground), strict=True)
    return [_channel(list(sketches)) for sketches in channels]


def _channel(sketches: list[ForegroundSketch]) -> ChannelFingerprint:
    total = merge(Moments(part.count, part.mean, part.m2) for part in sketches)
    pooled = np.percentile(np.concatenate([part.percentiles for part in sketches]), PERCENTILES)
    return ChannelFingerprint(
        num_voxels=total.count,
        mean=total.mean,
        std=total.std,
        percentiles={f"{p:g}": float(value) for p, value in zip(PERCENTILES, pooled)},
    )


def _per_axis(values: np.ndarray) -> dict[str, tuple[float, float, float]]:
    rows = np.percentile(values, GRID_PERCENTILES, axis=0)
    return {f"{p:g}": _triple(row.tolist()) for p, row in zip(GRID_PERCENTILES, rows)}


def _triple(values: Iterable[T]) -> tuple[T, T, T]:
    a, b, c = values
    return a, b, c
