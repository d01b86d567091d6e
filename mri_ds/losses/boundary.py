"""Loss at the borders between classes: their voxels' cross-entropy, or probabilities weighted by their distance from the border.

Axes: B batch, K classes, D H W voxels, V = D * H * W.
In: logits (B, K, D, H, W), target (B, D, H, W).  Out: (B,), never negative. Lengths in voxels.
Source: Kervadec et al. 2019, eq. 5 with the constant that it drops, for the distances.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from mri_ds.losses.overlap import counted_classes
from mri_ds.losses.voxel_softmax import VoxelSums, voxel_softmax

BoundaryKind = Literal["neighbours", "distance"]
REACH = 8  # voxels: errors further away than this count as being this far


def boundary_loss(
    logits: Tensor,
    target: Tensor,
    *,
    kind: BoundaryKind = "neighbours",
    reach: int = REACH,
    include_background: bool = False,
    ignore_index: int | None = None,
) -> Tensor:
    """ "neighbours": mean cross-entropy over `boundary_voxels`; "distance": see `distance_loss` -> (B,). 0 without a border."""
    if kind == "distance":
        return distance_loss(logits, target, reach=reach, include_background=include_background, ignore_index=ignore_index)
    return boundary_of(voxel_softmax(logits, target, ignore_index=ignore_index), target, ignore_index=ignore_index)


def boundary_of(sums: VoxelSums, target: Tensor, *, ignore_index: int | None = None) -> Tensor:
    is_boundary = boundary_voxels(target, ignore_index=ignore_index).flatten(1)
    return -(sums.log_prob * is_boundary).sum(dim=1) / is_boundary.sum(dim=1).clamp(min=1)


def boundary_voxels(target: Tensor, *, ignore_index: int | None = None) -> Tensor:
    """target (B, D, H, W) -> bool: another class lies in the voxel's 3 x 3 x 3 neighbourhood. The volume's edge is none.

    The voxels at which a 3 x 3 x 3 convolution of a class's mask with ones, divided by that of the volume, is neither 0 nor 1;
    found by the extremes of the labels, axis by axis, for all classes at once. Ignored voxels are no class and no boundary.
    """
    lowest = highest = target.to(torch.int16)
    if ignore_index is not None:
        is_ignored = target == ignore_index
        lowest, highest = lowest.masked_fill(is_ignored, torch.iinfo(torch.int16).max), highest.masked_fill(is_ignored, -1)
    for axis in (1, 2, 3):
        lowest, highest = _widen(lowest, axis, torch.minimum), _widen(highest, axis, torch.maximum)
    return lowest != highest if ignore_index is None else (lowest != highest) & ~is_ignored


def distance_loss(
    logits: Tensor, target: Tensor, *, reach: int = REACH, include_background: bool = False, ignore_index: int | None = None
) -> Tensor:
    """Mean over classes and voxels of phi (p - g), phi the signed distance to the class's border -> (B,).

    A probability outside its class costs its distance, one that is missing inside its depth. A class that is absent, or
    everywhere, has no border and costs nothing.
    """
    num_classes = logits.shape[1]
    keep = counted_classes(num_classes, include_background=include_background, ignore_index=ignore_index)
    is_valid = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    probs = torch.softmax(logits, dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))[:, keep]
    truth = torch.stack([target == k for k in keep], dim=1)
    phi = signed_distance(truth, reach=reach).to(probs.dtype)
    per_voxel = phi * (probs - truth.to(probs.dtype)) * is_valid[:, None]
    return per_voxel.flatten(1).sum(dim=1) / (len(keep) * is_valid.flatten(1).sum(dim=1).clamp(min=1))


def signed_distance(masks: Tensor, *, reach: int = REACH) -> Tensor:
    """masks (B, M, D, H, W) bool -> float32: outside, Euclidean distance to the mask; inside, 1 less than that to its outside,
    negative; neither beyond `reach`, and 0 for a mask that is empty or full.

    >>> signed_distance(torch.tensor([False, False, True, True, True]).view(1, 1, 1, 1, 5)).flatten().tolist()
    [2.0, 1.0, 0.0, -1.0, -2.0]
    """
    has_border = masks.flatten(2).any(dim=2) & ~masks.flatten(2).all(dim=2)
    outside, inside = _distance_to(masks, reach=reach), _distance_to(~masks, reach=reach)
    return torch.where(masks, 1 - inside, outside) * has_border[:, :, None, None, None]


def _distance_to(masks: Tensor, *, reach: int) -> Tensor:
    """Distance to the nearest True voxel, `reach` at most. Exact: squared distances are least sums of squares, axis by axis."""
    far = reach * reach
    squared = torch.where(masks, 0, far).to(torch.int32)
    for axis in (2, 3, 4):
        before = squared
        squared = before.clone()
        for step in range(1, min(reach, before.shape[axis])):
            for here, there in _shifts(before.shape[axis], step):
                near = squared.narrow(axis, *here)
                torch.minimum(near, before.narrow(axis, *there) + step * step, out=near)
    return squared.float().sqrt()


def _shifts(size: int, step: int) -> Sequence[tuple[tuple[int, int], tuple[int, int]]]:
    """(start, length) here and `step` voxels on, and the other way round."""
    low, high = (0, size - step), (step, size - step)
    return [(low, high), (high, low)]


def _widen(labels: Tensor, axis: int, extreme: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The extreme of each voxel and its two neighbours along one axis."""
    size = labels.shape[axis]
    pairs = extreme(labels.narrow(axis, 0, size - 1), labels.narrow(axis, 1, size - 1))
    first, last = labels.narrow(axis, 0, 1), labels.narrow(axis, size - 1, 1)
    return extreme(torch.cat([first, pairs], axis), torch.cat([pairs, last], axis))
