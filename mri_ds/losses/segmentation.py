"""Segmentation: overlap, cross-entropy and boundary terms of one task, at one resolution or several.

Axes: B batch, K classes, D H W voxels.
In: logits (B, K, D, H, W), coarser ones beside them where the network is supervised deeply, target (B, D, H, W).  Out: (B,).
Source: Lee et al. 2015 (deep supervision); see the terms' own files.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mri_ds.losses.boundary import REACH, BoundaryKind, boundary_of, distance_loss
from mri_ds.losses.cross_entropy import cross_entropy_of, weights_of_classes, weights_of_voxels
from mri_ds.losses.overlap import SMOOTH, DiceKind, MaskSums, counted_classes, dice_of, region_sums, tversky_of
from mri_ds.losses.voxel_softmax import VoxelSums, voxel_softmax

DEEP_SUPERVISION = (1.0, 0.5, 0.25, 0.125)  # weights of the resolutions, finest first


def segmentation_loss(
    logits: Tensor,
    target: Tensor,
    *,
    dice: float = 1.0,
    dice_kind: DiceKind = "soft",
    smooth: float = SMOOTH,
    include_background: bool = False,
    tversky: float = 0.0,
    tversky_alpha: float = 0.5,
    tversky_beta: float = 0.5,
    cross_entropy: float = 1.0,
    focal_gamma: float = 0.0,
    focal_alpha: float | None = None,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] = (),
    boundary: float = 0.0,
    boundary_kind: BoundaryKind = "neighbours",
    boundary_reach: int = REACH,
    regions: Sequence[Sequence[int]] = (),
    ignore_index: int | None = None,
) -> Tensor:
    """dice, tversky, cross_entropy and boundary weigh the terms; the others are options of theirs -> (B,), at least float32.

    See `dice_loss`, `tversky_loss`, `cross_entropy_loss`, `boundary_loss`. `regions` take the place of the classes in Dice and
    Tversky. Voxels of `ignore_index` count in none. The softmax is taken once for most terms, and its gradient in one go.

    >>> segmentation_loss(torch.zeros(1, 2, 1, 1, 2), torch.tensor([[[[0, 1]]]]), dice=0.0)
    tensor([0.6931])
    """
    sums = voxel_softmax(logits, target, ignore_index=ignore_index)
    loss = logits.new_zeros(len(logits), dtype=sums.log_prob.dtype)
    if dice or tversky:
        masks = _mask_sums(sums, logits, target, regions, include_background=include_background, ignore_index=ignore_index)
        if dice:
            loss = loss + dice * dice_of(masks, kind=dice_kind, smooth=smooth)
        if tversky:
            loss = loss + tversky * tversky_of(masks, alpha=tversky_alpha, beta=tversky_beta, smooth=smooth)
    if cross_entropy:
        weights = weights_of_classes(logits.shape[1], alpha=focal_alpha, class_weights=class_weights)
        of_voxels = weights_of_voxels(weights, target, ignore_index=ignore_index)
        term = cross_entropy_of(sums, label_smoothing=label_smoothing, gamma=focal_gamma, weights=of_voxels)
        loss = loss + cross_entropy * term
    if boundary and boundary_kind == "distance":
        found = distance_loss(
            logits, target, reach=boundary_reach, include_background=include_background, ignore_index=ignore_index
        )
        loss = loss + boundary * found
    elif boundary:
        loss = loss + boundary * boundary_of(sums, target, ignore_index=ignore_index)
    return loss


def deep_segmentation_loss(
    logits: Tensor, coarser: Sequence[Tensor], target: Tensor, *, weights: Sequence[float] = DEEP_SUPERVISION, **terms: object
) -> Tensor:
    """Sum over resolutions of weight times `segmentation_loss` -> (B,); the target is read at the voxel next to each centre.

    coarser: logits (B, K, d, h, w) of the same volume on grids of their own. Raises ValueError for fewer weights than
    resolutions.
    """
    every = [logits, *coarser]
    if len(weights) < len(every):
        raise ValueError(f"{len(weights)} deep-supervision weights for {len(every)} resolutions: give one for each")
    losses = [
        weight * segmentation_loss(level, on_grid(target, level.shape[2:]), **terms)  # type: ignore[arg-type]
        for weight, level in zip(weights, every, strict=False)
    ]
    return torch.stack(losses).sum(dim=0)


def on_grid(target: Tensor, shape: Sequence[int]) -> Tensor:
    """Labels (B, D, H, W) on a grid of another `shape`, each from the nearest voxel."""
    if target.shape[1:] == tuple(shape):
        return target
    return F.interpolate(target[:, None].double(), size=tuple(shape), mode="nearest-exact")[:, 0].to(target.dtype)


def _mask_sums(
    sums: VoxelSums,
    logits: Tensor,
    target: Tensor,
    regions: Sequence[Sequence[int]],
    *,
    include_background: bool,
    ignore_index: int | None,
) -> MaskSums:
    if regions:
        return region_sums(logits, target, regions, ignore_index=ignore_index)
    keep = counted_classes(logits.shape[1], include_background=include_background, ignore_index=ignore_index)
    return MaskSums(sums.overlap, sums.mass, sums.volume).only(keep)
