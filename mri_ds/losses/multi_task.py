"""Losses of all tasks in one: one value per subject and task, so that missing labels can be masked; summed with learned weights.

Axes: B batch, K classes, T tasks.
In: predictions, targets and masks of every task.  Out: one attached scalar, and what it is made of, detached.
A subject counts once whatever its size: terms are means over the voxels or classes of one subject.
Source: Kendall et al. 2018 (eq. 7 for regression, eq. 10 for classification).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mri_ds.losses.classification import class_loss
from mri_ds.losses.log_variance import bounded
from mri_ds.losses.regression import gaussian_nll_loss, regression_loss
from mri_ds.losses.segmentation import deep_segmentation_loss, segmentation_loss
from mri_ds.sample import coarser, log_variance

SUBJECT_LOSS = "subject/loss"  # key of the losses (B,) among a MultiTaskLoss's results

LOSSES: dict[str, Callable[..., Tensor]] = {
    "segmentation": segmentation_loss,
    "classification": class_loss,
    "regression": regression_loss,
}


class MultiTaskLoss(nn.Module):
    """Sum over tasks, each weighted by its learned uncertainty: exp(-s) L + s / 2 (regression: half the first term).

    tasks: name -> {"kind": a key of LOSSES, "options": keyword arguments of that loss; "deep_supervision": of a segmentation,
    weights of its resolutions, finest first; "gaussian": whether a regression's loss is `gaussian_nll_loss`}; other keys are not
    read. A Gaussian task has a variance of its own for every subject in the place of s, and weight 1.
    learn_task_weights: else every task has weight 1.

    `mask` holds weights, see sample.Batch: with L_t = mean_b(mask_b l_b), averages over ranks and micro-batches are means over
    the labelled subjects. The penalty s / 2 has the same weights, so a task without a label in the batch adds exactly nothing
    to the loss, to any prediction's gradient or to its s. What stands in `targets` under a mask of 0 is never read.

    >>> loss = MultiTaskLoss({"age": {"kind": "regression", "options": {"std": 10.0}}})
    >>> loss({"age": torch.tensor([60.0])}, {"age": torch.tensor([40.0])}, {"age": torch.tensor([1.0])})["age"]
    tensor(1.5000)
    """

    def __init__(self, tasks: Mapping[str, Mapping[str, Any]], *, learn_task_weights: bool = True) -> None:
        super().__init__()
        if not tasks:
            raise ValueError("no task to learn: give at least one")
        for name, task in tasks.items():
            _check(name, task)
        self.kinds = {name: str(task["kind"]) for name, task in tasks.items()}
        self.options = {name: dict(task.get("options", {})) for name, task in tasks.items()}
        self.resolutions = {name: list(task.get("deep_supervision", ())) for name, task in tasks.items()}
        self.gaussian = {name for name, task in tasks.items() if task.get("gaussian")}
        self.log_variance = nn.Parameter(torch.zeros(len(tasks))) if learn_task_weights else None

    def forward(
        self, predictions: Mapping[str, Tensor], targets: Mapping[str, Tensor], mask: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Returns {"loss": the sum, attached; and detached task: its L_t; "weight/" + task: exp(-s); SUBJECT_LOSS: (B,)}.

        SUBJECT_LOSS holds each subject's mean of l_b over the tasks that it has a label of, NaN where there are none.
        `predictions` holds, beside each task's own, what sample.coarser and sample.log_variance name.
        """
        total, logs = torch.zeros((), device=next(iter(predictions.values())).device), {}
        of_subjects = []
        log_variances = None if self.log_variance is None else bounded(self.log_variance)
        for index, (name, kind) in enumerate(self.kinds.items()):
            weight = mask[name].to(torch.promote_types(mask[name].dtype, torch.float32))
            losses = self._losses(name, predictions, targets[name], weight)
            task_loss = (weight * losses).mean()
            of_subjects.append(losses.detach().masked_fill(weight == 0, torch.nan))
            logs[name] = task_loss.detach()
            if log_variances is None or name in self.gaussian:
                total = total + task_loss
                logs[f"weight/{name}"] = torch.ones_like(logs[name])
                if log_variances is not None:
                    total = total + 0 * log_variances[index]  # a gradient of 0 instead of none, also where all tasks are Gaussian
            else:
                s = log_variances[index]
                precision = 0.5 * torch.exp(-s) if kind == "regression" else torch.exp(-s)
                total = total + precision * task_loss + 0.5 * s * weight.mean()
                logs[f"weight/{name}"] = torch.exp(-s).detach()
        logs[SUBJECT_LOSS] = torch.stack(of_subjects).nanmean(dim=0)
        return {"loss": total, **logs}

    def _losses(self, name: str, predictions: Mapping[str, Tensor], target: Tensor, weight: Tensor) -> Tensor:
        """l_b, (B,). Fillers are replaced before the loss: 0 * NaN is NaN, and -1 is no class."""
        is_filler = (weight == 0).reshape(-1, *[1] * (target.ndim - 1))
        target, options = target.masked_fill(is_filler, 0), self.options[name]
        if self.resolutions[name] and coarser(name) in predictions:
            levels, weights = [predictions[coarser(name)]], self.resolutions[name]
            return deep_segmentation_loss(predictions[name], levels, target, weights=weights, **options)
        if name in self.gaussian:
            return gaussian_nll_loss(predictions[name], target, predictions[log_variance(name)], **options)
        return LOSSES[self.kinds[name]](predictions[name], target, **options)


def _check(name: str, task: Mapping[str, Any]) -> None:
    """ValueError for an unknown kind, or a task that nothing would teach."""
    kind, options = task["kind"], task.get("options", {})
    if kind not in LOSSES:
        raise ValueError(f"task {name!r}: unknown kind {kind!r}, use one of {', '.join(LOSSES)}")
    terms = {"dice": 1.0, "tversky": 0.0, "cross_entropy": 1.0, "boundary": 0.0}
    if kind == "segmentation" and sum(options.get(term, usual) for term, usual in terms.items()) <= 0:
        raise ValueError(f"task {name!r} has no loss: {', '.join(terms)} are all 0, make one of them positive")
