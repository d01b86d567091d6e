"""Log-variances that are learned, kept from running away."""

import torch
from torch import Tensor

LOG_VARIANCE_BOUND = 4.0  # variances, and the weights that are their inverse, stay within exp(-4) and exp(4)


def bounded(raw: Tensor) -> Tensor:
    """Bounded smoothly, so that one at its bound can still come back; in float32 whatever the weights were cast to."""
    precise = raw.to(torch.promote_types(raw.dtype, torch.float32))
    return LOG_VARIANCE_BOUND * torch.tanh(precise / LOG_VARIANCE_BOUND)
