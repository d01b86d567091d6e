"""Regression of a number per subject, in units of the target's spread: smooth L1, or a Gaussian with a spread of its own.

Axes: B batch.
In: predictions and targets (B,) in the target's unit, `std` the scale of that.  Out: (B,), at least float32.
Source: Girshick 2015 (smooth L1), Nix & Weigend 1994 (Gaussian likelihood, eq. 2).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mri_ds.losses.log_variance import bounded


def regression_loss(prediction: Tensor, target: Tensor, *, std: float = 1.0, beta: float = 1.0) -> Tensor:
    """Smooth L1 of (prediction - target) / std, both (B,) in the target's unit -> (B,): quadratic up to `beta`, then linear."""
    error = _error(prediction, target, std)
    return F.smooth_l1_loss(error, torch.zeros_like(error), reduction="none", beta=beta)


def gaussian_nll_loss(prediction: Tensor, target: Tensor, log_variance: Tensor, *, std: float = 1.0) -> Tensor:
    """(error^2 / variance + log variance) / 2 of the error in units of `std` -> (B,); constants are left out.

    log_variance (B,): of that error, as the network predicts it for each subject, any number; it is bounded here.

    >>> gaussian_nll_loss(torch.tensor([60.0]), torch.tensor([40.0]), torch.zeros(1), std=10.0)
    tensor([2.])
    """
    error, s = _error(prediction, target, std), bounded(log_variance)
    return 0.5 * (error.square() * torch.exp(-s) + s)


def _error(prediction: Tensor, target: Tensor, std: float) -> Tensor:
    return (prediction.to(torch.promote_types(prediction.dtype, torch.float32)) - target) / std
