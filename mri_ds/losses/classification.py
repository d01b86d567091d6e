"""Classification of a whole image: classes without an order, or grades with one.

Axes: B batch, K classes.
In: logits (B, K), target (B,) class indices.  Out: (B,), at least float32.
Source: Frank & Hall 2001 (a scale of K grades as K - 1 questions "is it above this one?").
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def class_loss(logits: Tensor, target: Tensor, *, label_smoothing: float = 0.0, ordinal: bool = False) -> Tensor:
    """Cross-entropy of logits (B, K) and class indices (B,) -> (B,); `ordinal`: see `ordinal_loss`."""
    if ordinal:
        return ordinal_loss(logits, target, label_smoothing=label_smoothing)
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(precise, target, reduction="none", label_smoothing=label_smoothing)


def ordinal_loss(logits: Tensor, target: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean over the K - 1 thresholds of the cross-entropy of "the grade is above k" -> (B,).

    Its probability is the sum of the softmax above k, so logits mean what they mean for `class_loss`, whose value this is for
    two classes; a guess costs the more thresholds the further it is from the truth. label_smoothing: as in cross-entropy.

    >>> ordinal_loss(torch.zeros(1, 3), torch.tensor([0]))  # thresholds at 1/3 and 2/3: (log 3 + log 3/2) / 2
    tensor([0.7520])
    """
    num_classes = logits.shape[1]
    log_probs = torch.log_softmax(logits, dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))
    log_up_to = log_probs.logcumsumexp(dim=1)[:, :-1]  # log P(grade <= k)
    log_above = log_probs.flip(1).logcumsumexp(dim=1).flip(1)[:, 1:]
    grades = torch.arange(num_classes - 1, device=logits.device)
    is_up_to = (target[:, None] <= grades).to(log_probs.dtype)
    is_up_to = torch.lerp(is_up_to, ((grades + 1) / num_classes).to(is_up_to).expand_as(is_up_to), label_smoothing)
    return -(is_up_to * log_up_to + (1 - is_up_to) * log_above).mean(dim=1)
