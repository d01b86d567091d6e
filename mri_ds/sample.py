"""What travels from file to shard to step: volumes, samples, batches.

Axes, everywhere in mri_ds: B batch, C channel, D H W the three voxel axes. D, H, W are the array axes 0, 1, 2 of a NIfTI volume
(its i, j, k) and are never transposed; in canonical orientation they run towards Right, Anterior, Superior (RAS+).
Units: spacing and world positions in millimetres; `affine` maps (d, h, w, 1) to world (x, y, z, 1) as NIfTI defines it.
"""

from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch


@dataclass(frozen=True)
class Volume:
    """Voxels with their place in the world.

    voxels (C, D, H, W) float32 for an image, (D, H, W) int16 for a label; affine (4, 4) float64.
    """

    voxels: np.ndarray
    affine: np.ndarray
    notes: tuple[str, ...] = ()  # what a person should know about the file, such as forms that disagree; a line each

    @property
    def spacing_mm(self) -> np.ndarray:
        """Edge lengths of one voxel, (3,) float64, mm: the column norms of the affine."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)


class Sample(TypedDict):
    """One subject. A task that this subject has no label for is absent from `targets`."""

    subject_id: str
    image: np.ndarray  # (C, D, H, W) float32
    affine: np.ndarray  # (4, 4) float64
    spacing_mm: np.ndarray  # (3,) float64
    acquisition: NotRequired[list[dict[str, float | str]]]  # per channel, what DICOM said of its making; {}: nothing known
    targets: dict[str, Any]  # segmentation: (D, H, W) int16; classification: int class index; regression: float


class Batch(TypedDict):
    """What an objective's forward takes.

    `mask` is 0 where a label is missing (its target is a filler that no loss may read); elsewhere it is
    global_batch / (labels of this task in the global batch), so that a plain mean over B, averaged over ranks and
    micro-batches, is the mean over the labelled subjects wherever they sit. It is 1 when every subject is labelled.
    """

    image: torch.Tensor  # (B, C, D, H, W) float32, normalised
    spacing_mm: torch.Tensor  # (B, 3) float32, of the grid that `image` is on
    targets: dict[str, torch.Tensor]  # segmentation (B, D, H, W) int64; classification (B,) int64; regression (B,) float32
    mask: dict[str, torch.Tensor]  # (B,) float32, see above
    subject_id: NotRequired[list[str]]


def coarser(task: str) -> str:
    """Key, among a net's predictions, of the half-resolution logits that a segmentation task has beside its own in training."""
    return f"{task}/coarser"


def log_variance(task: str) -> str:
    """Key, among a net's predictions, of how unsure it is of a regression task: (B,), of the error in units of the task's std."""
    return f"{task}/log_variance"
