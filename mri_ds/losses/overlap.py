"""Overlap of soft masks with true ones: Dice, generalised Dice, Tversky; of classes, or of regions that are made of classes.

Axes: B batch, K classes, R regions, V voxels.
In: sums over the voxels of a mask each, (B, K) or (B, R).  Out: (B,), 0 for perfect overlap and 1 for none.
Source: Milletari et al. 2016 (Dice), Sudre et al. 2017 (generalised Dice), Salehi et al. 2017 (Tversky).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mri_ds.losses.voxel_softmax import voxel_softmax

SMOOTH = 1e-5  # a mask that is neither in the target nor predicted scores a perfect 1
DiceKind = Literal["soft", "generalised"]


class MaskSums(NamedTuple):
    """Of M masks, with p their probabilities and g the truth: (B, M) each."""

    overlap: Tensor  # sum p g
    mass: Tensor  # sum p
    volume: Tensor  # sum g

    def only(self, keep: Sequence[int]) -> "MaskSums":
        return MaskSums(*(x[:, list(keep)] for x in self))


def dice_loss(
    logits: Tensor,
    target: Tensor,
    *,
    kind: DiceKind = "soft",
    smooth: float = SMOOTH,
    include_background: bool = False,
    regions: Sequence[Sequence[int]] = (),
    ignore_index: int | None = None,
) -> Tensor:
    """1 - mean over masks of (2 sum p g + smooth) / (sum p + sum g + smooth); `kind` "generalised": see `generalised_dice`.

    logits (B, K, D, H, W), target (B, D, H, W) -> (B,). Masks are the classes, without the background unless
    `include_background`, or else `regions`, see `region_sums`.

    >>> dice_loss(torch.zeros(1, 2, 1, 1, 2), torch.tensor([[[[0, 1]]]]))
    tensor([0.5000])
    """
    sums = mask_sums(logits, target, include_background=include_background, regions=regions, ignore_index=ignore_index)
    return dice_of(sums, kind=kind, smooth=smooth)


def tversky_loss(
    logits: Tensor,
    target: Tensor,
    *,
    alpha: float = 0.5,
    beta: float = 0.5,
    smooth: float = SMOOTH,
    include_background: bool = False,
    regions: Sequence[Sequence[int]] = (),
    ignore_index: int | None = None,
) -> Tensor:
    """As `dice_loss`, with false positives weighted by `alpha` and false negatives by `beta`; halves give Dice's score."""
    sums = mask_sums(logits, target, include_background=include_background, regions=regions, ignore_index=ignore_index)
    return tversky_of(sums, alpha=alpha, beta=beta, smooth=smooth)


def dice_of(sums: MaskSums, *, kind: DiceKind = "soft", smooth: float = SMOOTH) -> Tensor:
    if kind == "generalised":
        return generalised_dice(sums, smooth=smooth)
    score = (2 * sums.overlap + smooth) / (sums.mass + sums.volume + smooth)
    return 1 - score.mean(dim=1)


def generalised_dice(sums: MaskSums, *, smooth: float = SMOOTH) -> Tensor:
    """One Dice of all masks together, each weighted by its true volume to the power of -2.

    Only the ratio of weights matters, so the smallest present mask has weight 1: with 1 / volume^2 itself, `smooth` would
    outweigh the sums of a large organ. An absent mask counts like the smallest present one.
    """
    is_absent = sums.volume == 0
    smallest = sums.volume.masked_fill(is_absent, torch.inf).amin(dim=1, keepdim=True)
    weight = (smallest / sums.volume).square().masked_fill(is_absent, 1)
    score = (2 * (weight * sums.overlap).sum(dim=1) + smooth) / ((weight * (sums.mass + sums.volume)).sum(dim=1) + smooth)
    return 1 - score


def tversky_of(sums: MaskSums, *, alpha: float, beta: float, smooth: float = SMOOTH) -> Tensor:
    errors = alpha * (sums.mass - sums.overlap) + beta * (sums.volume - sums.overlap)
    return 1 - ((sums.overlap + smooth) / (sums.overlap + errors + smooth)).mean(dim=1)


def mask_sums(
    logits: Tensor, target: Tensor, *, include_background: bool, regions: Sequence[Sequence[int]], ignore_index: int | None
) -> MaskSums:
    if regions:
        return region_sums(logits, target, regions, ignore_index=ignore_index)
    sums = voxel_softmax(logits, target, ignore_index=ignore_index)
    keep = counted_classes(logits.shape[1], include_background=include_background, ignore_index=ignore_index)
    return MaskSums(sums.overlap, sums.mass, sums.volume).only(keep)


def counted_classes(num_classes: int, *, include_background: bool, ignore_index: int | None) -> list[int]:
    """An ignored class has no voxel to overlap with."""
    return [k for k in range(0 if include_background else 1, num_classes) if k != ignore_index]


def region_sums(logits: Tensor, target: Tensor, regions: Sequence[Sequence[int]], *, ignore_index: int | None = None) -> MaskSums:
    """Sums of regions, each a list of classes whose union it is; they may overlap, as tumour core and whole tumour do.

    A label map holds one class per voxel, so every region of it is a union of classes, and the probability of being in a region
    is the sum of its classes': the network keeps one softmax, and its label maps need no rule for which region wins.
    """
    member = torch.zeros(len(regions), logits.shape[1], device=logits.device)
    for r, classes in enumerate(regions):
        member[r, list(classes)] = 1
    probs = torch.softmax(logits.flatten(2), dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))
    labels = target.flatten(1).long()
    if ignore_index is not None:
        is_valid = labels != ignore_index
        labels, probs = labels.masked_fill(~is_valid, 0), probs * is_valid[:, None]
    inside = member.to(probs.dtype) @ probs  # (B, R, V)
    truth = member.to(probs.dtype)[:, labels].movedim(0, 1)
    if ignore_index is not None:
        truth = truth * is_valid[:, None]
    return MaskSums((inside * truth).sum(dim=2), inside.sum(dim=2), truth.sum(dim=2))
