"""Cross-entropy of voxels: plain, focal, smoothed, weighted by class.

Axes: B batch, K classes, D H W voxels, V = D * H * W.
In: logits (B, K, D, H, W), target (B, D, H, W).  Out: (B,), means over the voxels of one subject.
Source: Lin et al. 2017 (focal: gamma, alpha), Szegedy et al. 2016 (label smoothing).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mri_ds.losses.voxel_softmax import VoxelSums, voxel_softmax

RAREST = 1e-4  # a class prior below this weighs no more


def cross_entropy_loss(
    logits: Tensor,
    target: Tensor,
    *,
    label_smoothing: float = 0.0,
    gamma: float = 0.0,
    alpha: float | None = None,
    class_weights: Sequence[float] = (),
    ignore_index: int | None = None,
) -> Tensor:
    """Mean over voxels of -w (1 - p)^gamma log p, p the probability of the true class, w its weight -> (B,).

    gamma 0 is cross-entropy. alpha (0..1) weighs foreground classes by alpha and the background by 1 - alpha; class_weights, K of
    them or none for 1, come on top. label_smoothing: this share goes to the mean of -log p over all classes, unweighted.

    >>> cross_entropy_loss(torch.zeros(1, 2, 1, 1, 2), torch.tensor([[[[0, 1]]]]))
    tensor([0.6931])
    """
    weights = weights_of_classes(logits.shape[1], alpha=alpha, class_weights=class_weights)
    return cross_entropy_of(
        voxel_softmax(logits, target, ignore_index=ignore_index),
        label_smoothing=label_smoothing,
        gamma=gamma,
        weights=weights_of_voxels(weights, target, ignore_index=ignore_index),
    )


def cross_entropy_of(sums: VoxelSums, *, label_smoothing: float, gamma: float, weights: Tensor | None = None) -> Tensor:
    """`weights` (B, V), None for 1."""
    log_prob = sums.log_prob if weights is None else sums.log_prob * weights
    if gamma:
        miss = (-torch.expm1(sums.log_prob)).clamp(min=torch.finfo(log_prob.dtype).tiny)  # not 0: 0 ** (gamma - 1) is infinite
        log_prob = log_prob * miss**gamma
    loss = -sums.mean(log_prob)
    return torch.lerp(loss, -sums.mean_log_prob, label_smoothing) if label_smoothing else loss


def weights_of_classes(num_classes: int, *, alpha: float | None, class_weights: Sequence[float]) -> list[float]:
    """Both in one, (K,); empty where every class weighs 1."""
    if alpha is None:
        return list(class_weights)
    return [w * (alpha if k else 1 - alpha) for k, w in enumerate(class_weights or [1.0] * num_classes)]


def weights_of_voxels(weights: Sequence[float], target: Tensor, *, ignore_index: int | None) -> Tensor | None:
    """(K,) -> (B, V), the weight of each voxel's class; that of an ignored voxel stands for nothing."""
    if not weights:
        return None
    labels = target.flatten(1).long()
    if ignore_index is not None:
        labels = labels.masked_fill(labels == ignore_index, 0)
    return torch.tensor(weights, device=target.device)[labels]


def balanced_weights(class_prior: Sequence[float], power: float) -> list[float]:
    """Weights in proportion to prior ** -power, 1 on average over voxels: 0 is none, 1 gives every class the same say.

    Where small classes have none, Dice may settle on predicting one of two neighbours everywhere and the other nowhere.

    >>> [round(w, 2) for w in balanced_weights([0.9, 0.1], power=0.5)]
    [0.83, 2.5]
    """
    raw = [max(prior, RAREST) ** -power for prior in class_prior]
    mean = sum(prior * weight for prior, weight in zip(class_prior, raw, strict=True))
    return [weight / mean for weight in raw]
