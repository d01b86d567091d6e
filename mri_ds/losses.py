"""Losses: one value per subject, so that missing labels can be masked; and their sum over tasks with learned weights.

Axes: B batch, K classes, V = D * H * W voxels, T tasks.
In: logits or predictions and targets of one task.  Out: (B,) float32 (float64 for float64 predictions).
A subject counts once whatever its size: terms are means over the voxels or classes of one subject.
Source: Milletari et al. 2016 (Dice), Lin et al. 2017 (focal), Kendall et al. 2018 (uncertainty weights; eq. 7 for regression,
eq. 10 for classification).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SMOOTH = 1e-5  # of Dice: a class that is neither in the target nor predicted scores a perfect 1
RAREST = 1e-4  # a class prior below this weighs no more
SUBJECT_LOSS = "subject/loss"  # key of the losses (B,) among a MultiTaskLoss's results
LOG_VARIANCE_BOUND = 4.0  # learned task weights stay within exp(-4) and exp(4)


class MultiTaskLoss(nn.Module):
    """Sum over tasks, each weighted by its learned uncertainty: exp(-s) L + s / 2 (regression: half the first term).

    tasks: name -> {"kind": a key of LOSSES, "std": scale of a regression target, default 1, "class_weights": of a segmentation's
    cross-entropy, see `balanced_weights`, default all 1}; other keys are not read.
    dice, cross_entropy, boundary, focal_gamma: see `segmentation_loss`. label_smoothing: also of classification.
    learn_task_weights: else every task has weight 1.

    `mask` holds weights, see sample.Batch: with L_t = mean_b(mask_b l_b), averages over ranks and micro-batches are means over
    the labelled subjects. The penalty s / 2 has the same weights, so a task without a label in the batch adds exactly nothing
    to the loss, to any prediction's gradient or to its s. What stands in `targets` under a mask of 0 is never read.

    >>> loss = MultiTaskLoss({"age": {"kind": "regression", "std": 10.0}})
    >>> loss({"age": torch.tensor([60.0])}, {"age": torch.tensor([40.0])}, {"age": torch.tensor([1.0])})["age"]
    tensor(1.5000)
    """

    def __init__(
        self,
        tasks: Mapping[str, Mapping[str, Any]],
        *,
        dice: float = 1.0,
        cross_entropy: float = 1.0,
        boundary: float = 0.0,
        focal_gamma: float = 0.0,
        label_smoothing: float = 0.0,
        learn_task_weights: bool = True,
    ) -> None:
        super().__init__()
        if not tasks:
            raise ValueError("no task to learn: give at least one")
        voxels = {"dice": dice, "cross_entropy": cross_entropy, "boundary": boundary, "focal_gamma": focal_gamma}
        self.kinds = {name: str(task["kind"]) for name, task in tasks.items()}
        self.options = {name: _loss_options(name, task, voxels, label_smoothing) for name, task in tasks.items()}
        self.log_variance = nn.Parameter(torch.zeros(len(tasks))) if learn_task_weights else None

    def forward(
        self, predictions: Mapping[str, Tensor], targets: Mapping[str, Tensor], mask: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Returns {"loss": the sum, attached; and detached task: its L_t; "weight/" + task: exp(-s); SUBJECT_LOSS: (B,)}.

        SUBJECT_LOSS holds each subject's mean of l_b over the tasks that it has a label of, NaN where there are none.
        """
        total, logs = torch.zeros((), device=next(iter(predictions.values())).device), {}
        of_subjects = []
        log_variances = self._log_variances()
        for index, (name, kind) in enumerate(self.kinds.items()):
            weight = mask[name].to(torch.promote_types(mask[name].dtype, torch.float32))
            losses = self._losses(name, predictions[name], targets[name], weight)
            task_loss = (weight * losses).mean()
            of_subjects.append(losses.detach().masked_fill(weight == 0, torch.nan))
            logs[name] = task_loss.detach()
            if log_variances is None:
                total = total + task_loss
                logs[f"weight/{name}"] = torch.ones_like(logs[name])
            else:
                s = log_variances[index]
                precision = 0.5 * torch.exp(-s) if kind == "regression" else torch.exp(-s)
                total = total + precision * task_loss + 0.5 * s * weight.mean()
                logs[f"weight/{name}"] = torch.exp(-s).detach()
        logs[SUBJECT_LOSS] = torch.stack(of_subjects).nanmean(dim=0)
        return {"loss": total, **logs}

    def _log_variances(self) -> Tensor | None:
        """Bounded smoothly, so that a weight at its bound can still come back; in float32 whatever the weights were cast to."""
        if self.log_variance is None:
            return None
        raw = self.log_variance.to(torch.promote_types(self.log_variance.dtype, torch.float32))
        return LOG_VARIANCE_BOUND * torch.tanh(raw / LOG_VARIANCE_BOUND)

    def _losses(self, name: str, prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """l_b, (B,). Fillers are replaced before the loss: 0 * NaN is NaN, and -1 is no class."""
        is_filler = (weight == 0).reshape(-1, *[1] * (target.ndim - 1))
        return LOSSES[self.kinds[name]](prediction, target.masked_fill(is_filler, 0), **self.options[name])


def segmentation_loss(
    logits: Tensor,
    target: Tensor,
    *,
    dice: float = 1.0,
    cross_entropy: float = 1.0,
    boundary: float = 0.0,
    focal_gamma: float = 0.0,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] = (),
) -> Tensor:
    """Weighted sum of Dice, (focal) cross-entropy and boundary terms of logits (B, K, D, H, W), target (B, D, H, W) -> (B,).

    class_weights: of the cross-entropy of each class's voxels, K of them, or none for 1.
    The softmax is taken once for all terms, and its gradient in one go.

    >>> segmentation_loss(torch.zeros(1, 2, 1, 1, 2), torch.tensor([[[[0, 1]]]]), dice=0.0)
    tensor([0.6931])
    """
    sums = voxel_softmax(logits, target)
    loss = logits.new_zeros(len(logits), dtype=sums.log_prob.dtype)
    if dice:
        loss = loss + dice * _dice(sums)
    if cross_entropy:
        loss = loss + cross_entropy * _cross_entropy(
            sums, label_smoothing=label_smoothing, gamma=focal_gamma, weights=_voxel_weights(class_weights, target)
        )
    if boundary:
        loss = loss + boundary * _boundary(sums, target)
    return loss


def dice_loss(logits: Tensor, target: Tensor, *, smooth: float = SMOOTH, include_background: bool = False) -> Tensor:
    """1 - mean over classes of (2 sum p g + smooth) / (sum p + sum g + smooth), p the softmax, g the target -> (B,)."""
    return _dice(voxel_softmax(logits, target), smooth=smooth, include_background=include_background)


def cross_entropy_loss(logits: Tensor, target: Tensor, *, label_smoothing: float = 0.0, gamma: float = 0.0) -> Tensor:
    """Mean over voxels of -(1 - p)^gamma log p, p the probability of the true class -> (B,). gamma 0 is cross-entropy.

    label_smoothing: this share of the weight goes to the mean of -log p over all classes.
    """
    return _cross_entropy(voxel_softmax(logits, target), label_smoothing=label_smoothing, gamma=gamma)


def boundary_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy over the voxels with another class among their 26 neighbours -> (B,); 0 where there are none."""
    return _boundary(voxel_softmax(logits, target), target)


def class_loss(logits: Tensor, target: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of logits (B, K) and class indices (B,) -> (B,)."""
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(precise, target, reduction="none", label_smoothing=label_smoothing)


def regression_loss(prediction: Tensor, target: Tensor, *, std: float = 1.0, beta: float = 1.0) -> Tensor:
    """Smooth L1 of (prediction - target) / std, both (B,) in the target's unit -> (B,): quadratic up to `beta`, then linear."""
    error = (prediction.to(torch.promote_types(prediction.dtype, torch.float32)) - target) / std
    return F.smooth_l1_loss(error, torch.zeros_like(error), reduction="none", beta=beta)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "segmentation": segmentation_loss,
    "classification": class_loss,
    "regression": regression_loss,
}


def _loss_options(name: str, task: Mapping[str, Any], voxels: dict[str, float], label_smoothing: float) -> dict[str, Any]:
    """Keyword arguments for the loss of one task; ValueError for an unknown kind or a task that nothing would teach."""
    kind = task["kind"]
    if kind == "regression":
        return {"std": float(task.get("std", 1.0))}
    if kind == "classification":
        return {"label_smoothing": label_smoothing}
    if kind != "segmentation":
        raise ValueError(f"task {name!r}: unknown kind {kind!r}, use one of {', '.join(LOSSES)}")
    if voxels["dice"] + voxels["cross_entropy"] + voxels["boundary"] <= 0:
        raise ValueError(f"task {name!r} has no loss: dice, cross_entropy and boundary are all 0, make one of them positive")
    return {**voxels, "label_smoothing": label_smoothing, "class_weights": tuple(task.get("class_weights", ()))}


def balanced_weights(class_prior: Sequence[float], power: float) -> list[float]:
    """Weights in proportion to prior ** -power, 1 on average over voxels: 0 is none, 1 gives every class the same say.

    Where small classes have none, Dice may settle on predicting one of two neighbours everywhere and the other nowhere.

    >>> [round(w, 2) for w in balanced_weights([0.9, 0.1], power=0.5)]
    [0.83, 2.5]
    """
    raw = [max(prior, RAREST) ** -power for prior in class_prior]
    mean = sum(prior * weight for prior, weight in zip(class_prior, raw, strict=True))
    return [weight / mean for weight in raw]


class VoxelSums(NamedTuple):
    """What every segmentation term is made of, differentiable in the logits but for `volume`."""

    log_prob: Tensor  # (B, V) log-probability of the true class
    overlap: Tensor  # (B, K) sum of p over the voxels of class k
    mass: Tensor  # (B, K) sum of p over all voxels
    mean_log_prob: Tensor  # (B,) mean of the log-probability over voxels and classes
    volume: Tensor  # (B, K) number of voxels of class k


def voxel_softmax(logits: Tensor, target: Tensor) -> VoxelSums:
    """logits (B, K, D, H, W) of any float dtype, target (B, D, H, W) integer in [0, K) -> VoxelSums, at least float32."""
    assert logits.shape[:1] + logits.shape[2:] == target.shape, f"logits {tuple(logits.shape)}, target {tuple(target.shape)}"
    log_prob, overlap, mass, mean_log_prob, volume = _VoxelSoftmax.apply(logits.flatten(2), target.flatten(1).long())
    return VoxelSums(log_prob, overlap, mass, mean_log_prob, volume)


def boundary_voxels(target: Tensor) -> Tensor:
    """target (B, D, H, W) -> bool: another class lies in the voxel's 3 x 3 x 3 neighbourhood. The volume's edge is none."""
    lowest = highest = target.to(torch.int16)
    for axis in (1, 2, 3):
        lowest, highest = _widen(lowest, axis, torch.minimum), _widen(highest, axis, torch.maximum)
    return lowest != highest


def _dice(sums: VoxelSums, *, smooth: float = SMOOTH, include_background: bool = False) -> Tensor:
    score = (2 * sums.overlap + smooth) / (sums.mass + sums.volume + smooth)
    return 1 - score[:, 0 if include_background else 1 :].mean(dim=1)


def _voxel_weights(class_weights: Sequence[float], target: Tensor) -> Tensor | None:
    """(K,) -> (B, V), the weight of each voxel's class."""
    return torch.tensor(class_weights, device=target.device)[target.flatten(1).long()] if class_weights else None


def _cross_entropy(sums: VoxelSums, *, label_smoothing: float, gamma: float, weights: Tensor | None = None) -> Tensor:
    log_prob = sums.log_prob if weights is None else sums.log_prob * weights
    if gamma:
        miss = (-torch.expm1(sums.log_prob)).clamp(min=torch.finfo(log_prob.dtype).tiny)  # not 0: 0 ** (gamma - 1) is infinite
        log_prob = log_prob * miss**gamma
    loss = -log_prob.mean(dim=1)
    return torch.lerp(loss, -sums.mean_log_prob, label_smoothing) if label_smoothing else loss


def _boundary(sums: VoxelSums, target: Tensor) -> Tensor:
    is_boundary = boundary_voxels(target).flatten(1)
    return -(sums.log_prob * is_boundary).sum(dim=1) / is_boundary.sum(dim=1).clamp(min=1)


def _widen(labels: Tensor, axis: int, extreme: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The extreme of each voxel and its two neighbours along one axis."""
    size = labels.shape[axis]
    pairs = extreme(labels.narrow(axis, 0, size - 1), labels.narrow(axis, 1, size - 1))
    first, last = labels.narrow(axis, 0, 1), labels.narrow(axis, size - 1, 1)
    return extreme(torch.cat([first, pairs], axis), torch.cat([pairs, last], axis))


class _VoxelSoftmax(torch.autograd.Function):
    """Softmax over classes with its gradient in closed form: no one-hot target, one tensor (B, K, V) kept for the backward pass.

    With G the gradients of the outputs, c the true class, p the softmax and q_k = G_mass_k + [k = c] G_overlap_c:
    d / d z_k = p_k (q_k - sum_j p_j q_j) + G_log_prob ([k = c] - p_k) + G_mean_log_prob (1 / K - p_k) / V.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        num_classes = logits.shape[1]
        log_probs = torch.log_softmax(logits, dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))
        log_prob = log_probs.gather(1, target[:, None])[:, 0]
        mean_log_prob = log_probs.mean(dim=(1, 2))
        probs = log_probs.exp_()
        overlap, volume = _class_sums(log_prob.exp(), target, num_classes)
        ctx.save_for_backward(probs, target)
        ctx.dtype = logits.dtype
        ctx.mark_non_differentiable(volume)
        return log_prob, overlap, probs.sum(dim=2), mean_log_prob, volume

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, g_log_prob: Tensor, g_overlap: Tensor, g_mass: Tensor, g_mean: Tensor, _: Tensor
    ) -> tuple[Tensor, None]:
        probs, target = ctx.saved_tensors
        _, num_classes, num_voxels = probs.shape
        g_true = g_overlap.gather(1, target) * probs.gather(1, target[:, None])[:, 0]
        expected = (g_mass[:, None] @ probs)[:, 0] + g_true  # sum_j p_j q_j
        pull = expected + g_log_prob + g_mean[:, None] / num_voxels
        grad = (g_mass[:, :, None] - pull[:, None]).mul_(probs)
        grad.scatter_add_(1, target[:, None], (g_true + g_log_prob)[:, None])
        grad += (g_mean / (num_classes * num_voxels))[:, None, None]
        return grad.to(ctx.dtype), None


def _class_sums(values: Tensor, target: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Sums of values (B, V) and counts of voxels, per class of target (B, V): each (B, K).

    Summed in float64: a running float32 sum over millions of voxels loses the digits that Dice needs.
    """
    batch = len(target)
    place = (target + num_classes * torch.arange(batch, device=target.device)[:, None]).flatten()
    sums = torch.bincount(place, weights=values.flatten().double(), minlength=batch * num_classes)
    counts = torch.bincount(place, minlength=batch * num_classes)
    return sums.view(batch, -1).to(values.dtype), counts.view(batch, -1).to(values.dtype)
