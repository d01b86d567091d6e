"""Losses: tensors in, one value per subject out; and their sum over tasks with learned weights."""

from mri_ds.losses.boundary import boundary_loss, boundary_voxels, distance_loss, signed_distance
from mri_ds.losses.classification import class_loss, ordinal_loss
from mri_ds.losses.cross_entropy import balanced_weights, cross_entropy_loss
from mri_ds.losses.log_variance import LOG_VARIANCE_BOUND
from mri_ds.losses.multi_task import LOSSES, SUBJECT_LOSS, MultiTaskLoss
from mri_ds.losses.overlap import SMOOTH, dice_loss, tversky_loss
from mri_ds.losses.regression import gaussian_nll_loss, regression_loss
from mri_ds.losses.segmentation import deep_segmentation_loss, segmentation_loss

__all__ = [
    "LOG_VARIANCE_BOUND",
    "LOSSES",
    "SMOOTH",
    "SUBJECT_LOSS",
    "MultiTaskLoss",
    "balanced_weights",
    "boundary_loss",
    "boundary_voxels",
    "class_loss",
    "cross_entropy_loss",
    "deep_segmentation_loss",
    "dice_loss",
    "distance_loss",
    "gaussian_nll_loss",
    "ordinal_loss",
    "regression_loss",
    "segmentation_loss",
    "signed_distance",
    "tversky_loss",
]
