"""The sums over voxels that every segmentation term is made of, from one softmax.

Axes: B batch, K classes, D H W voxels, V = D * H * W.
In: logits (B, K, D, H, W) of any float dtype, target (B, D, H, W) integer.  Out: VoxelSums, at least float32.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class VoxelSums(NamedTuple):
    """Differentiable in the logits but for the counts. Ignored voxels are in none of them; their `log_prob` is 0."""

    log_prob: Tensor  # (B, V) log-probability of the true class
    overlap: Tensor  # (B, K) sum of p over the voxels of class k
    mass: Tensor  # (B, K) sum of p over all voxels
    mean_log_prob: Tensor  # (B,) mean of the log-probability over voxels and classes
    volume: Tensor  # (B, K) number of voxels of class k
    num_voxels: Tensor  # (B,), 1 where all are ignored, so that it divides

    def mean(self, per_voxel: Tensor) -> Tensor:
        """(B, V), 0 at ignored voxels -> (B,) mean over the others."""
        return per_voxel.sum(dim=1) / self.num_voxels


def voxel_softmax(logits: Tensor, target: Tensor, *, ignore_index: int | None = None) -> VoxelSums:
    """Target values are in [0, K), or `ignore_index`, which may itself lie in that range."""
    assert logits.shape[:1] + logits.shape[2:] == target.shape, f"logits {tuple(logits.shape)}, target {tuple(target.shape)}"
    flat = target.flatten(1).long()
    valid = None if ignore_index is None else flat != ignore_index
    if valid is not None:
        flat = flat.masked_fill(~valid, 0)
    return VoxelSums(*_VoxelSoftmax.apply(logits.flatten(2), flat, valid))


class _VoxelSoftmax(torch.autograd.Function):
    """Softmax over classes with its gradient in closed form: no one-hot target, one tensor (B, K, V) kept for the backward pass.

    With G the gradients of the outputs, c the true class, p the softmax and q_k = G_mass_k + [k = c] G_overlap_c:
    d / d z_k = p_k (q_k - sum_j p_j q_j) + G_log_prob ([k = c] - p_k) + G_mean_log_prob (1 / K - p_k) / V,
    and 0 at ignored voxels, whose p is kept as 0; V counts the others.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, valid: Tensor | None) -> tuple[Tensor, ...]:
        num_classes = logits.shape[1]
        log_probs = torch.log_softmax(logits, dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))
        log_prob = log_probs.gather(1, target[:, None])[:, 0]
        if valid is None:
            num_voxels = log_prob.new_full((len(target),), target.shape[1])
            mean_log_prob = log_probs.mean(dim=(1, 2))
            probs = log_probs.exp_()
        else:
            num_voxels = valid.sum(dim=1).clamp(min=1).to(log_prob.dtype)
            log_prob = log_prob.masked_fill(~valid, 0)
            mean_log_prob = log_probs.mean(dim=1).masked_fill(~valid, 0).sum(dim=1) / num_voxels
            probs = log_probs.exp_().masked_fill_(~valid[:, None], 0)
        overlap, volume = _class_sums(log_prob.exp(), target, valid, num_classes)
        ctx.save_for_backward(probs, target, valid, num_voxels)
        ctx.dtype = logits.dtype
        ctx.mark_non_differentiable(volume, num_voxels)
        return log_prob, overlap, probs.sum(dim=2), mean_log_prob, volume, num_voxels

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, g_log_prob: Tensor, g_overlap: Tensor, g_mass: Tensor, g_mean: Tensor, *_: Tensor
    ) -> tuple[Tensor, None, None]:
        probs, target, valid, num_voxels = ctx.saved_tensors
        num_classes = probs.shape[1]
        g_mean = g_mean / num_voxels
        g_true = g_overlap.gather(1, target) * probs.gather(1, target[:, None])[:, 0]
        expected = (g_mass[:, None] @ probs)[:, 0] + g_true  # sum_j p_j q_j
        pull = expected + g_log_prob + g_mean[:, None]
        grad = (g_mass[:, :, None] - pull[:, None]).mul_(probs)
        grad.scatter_add_(1, target[:, None], (g_true + g_log_prob)[:, None])
        grad += (g_mean / num_classes)[:, None, None]
        if valid is not None:
            grad.masked_fill_(~valid[:, None], 0)
        return grad.to(ctx.dtype), None, None


def _class_sums(values: Tensor, target: Tensor, valid: Tensor | None, num_classes: int) -> tuple[Tensor, Tensor]:
    """Sums of values (B, V) and counts of voxels, per class of target (B, V): each (B, K).

    Summed in float64: a running float32 sum over millions of voxels loses the digits that Dice needs.
    """
    batch = len(target)
    place = (target + num_classes * torch.arange(batch, device=target.device)[:, None]).flatten()
    one = None if valid is None else valid.flatten().double()
    weights = values.flatten().double() if one is None else values.flatten().double() * one
    sums = torch.bincount(place, weights=weights, minlength=batch * num_classes)
    counts = torch.bincount(place, weights=one, minlength=batch * num_classes)
    return sums.view(batch, -1).to(values.dtype), counts.view(batch, -1).to(values.dtype)
