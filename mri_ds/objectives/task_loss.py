"""From what a config says of a task and its loss to what MultiTaskLoss takes: plain values."""

from typing import Any

from mri_ds.config import TaskConfig, TaskLossConfig
from mri_ds.losses import balanced_weights

# Fields of TaskLossConfig that bear the name of an argument of segmentation_loss.
OF_VOXELS = (
    "dice", "dice_kind", "smooth", "include_background", "tversky", "tversky_alpha", "tversky_beta", "cross_entropy",
    "focal_gamma", "focal_alpha", "label_smoothing", "boundary", "boundary_kind", "boundary_reach",
)  # fmt: skip


def loss_of(task: TaskConfig, terms: TaskLossConfig) -> dict[str, Any]:
    """One entry of MultiTaskLoss's `tasks`; names of classes become their numbers."""
    if task.kind == "classification":
        return {
            "kind": task.kind,
            "options": {"label_smoothing": terms.label_smoothing, "ordinal": terms.classification == "ordinal"},
        }
    if task.kind == "regression":
        if terms.regression == "gaussian_nll":
            return {"kind": task.kind, "gaussian": True, "options": {"std": task.std}}
        return {"kind": task.kind, "options": {"std": task.std, "beta": terms.smooth_l1_beta}}
    options = {name: getattr(terms, name) for name in OF_VOXELS}
    if task.class_prior:
        options["class_weights"] = balanced_weights(task.class_prior, terms.class_balance)
    if terms.ignore:
        options["ignore_index"] = task.classes.index(terms.ignore)
    options["regions"] = [[task.classes.index(name) for name in classes] for classes in terms.regions.values()]
    return {"kind": task.kind, "options": options, "deep_supervision": terms.deep_supervision}
