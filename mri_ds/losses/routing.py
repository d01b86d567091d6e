"""Losses of a router: logits that stay small, and experts that are visited evenly.

Axes: T tokens, E experts, K experts per token.
In: logits (T, E) and the chosen experts (T, K) of one layer and micro-batch.  Out: scalars, at least float32.
Source: Zoph et al. 2022, eq. 5 (z-loss); Fedus et al. 2021, eq. 4 to 6 (balance), with K choices of a token as in GShard.
"""

import torch
from torch import Tensor


def router_z_loss(logits: Tensor) -> Tensor:
    """Mean over tokens of the squared log of the sum of exp(logits): large logits round badly in bf16.

    >>> router_z_loss(torch.zeros(5, 2))  # log(2)^2
    tensor(0.4805)
    """
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).logsumexp(dim=1).square().mean()


def balance_loss(logits: Tensor, chosen: Tensor) -> Tensor:
    """E sum_e f_e P_e, f_e the share of choices that fell on expert e, P_e its mean probability: 1 when even, E / K at worst.

    Only P has a gradient.

    >>> balance_loss(torch.zeros(2, 2), torch.tensor([[0], [1]]))
    tensor(1.)
    """
    num_experts = logits.shape[1]
    probs = torch.softmax(logits, dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))
    counts = torch.zeros(num_experts, device=logits.device, dtype=probs.dtype)
    counts.scatter_add_(0, chosen.flatten(), torch.ones_like(chosen.flatten(), dtype=probs.dtype))
    return num_experts * (counts / chosen.numel() * probs.mean(dim=0)).sum()
