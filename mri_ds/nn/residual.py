"""Residual experts: every token visits one dense network and its experts, and learns how much of each it takes.

Axes: B batch, N tokens, D width.
In: tokens (B, N, D).  Out: tokens (B, N, D).
Source: Rajbhandari et al. 2022, "DeepSpeed-MoE", section 4.1 (Residual-MoE): the expert corrects the dense network.
"""

import torch
from torch import nn

from mri_ds.nn.moe import Experts, MixtureOfExperts


class ResidualMixture(nn.Module):
    """softmax(coefficient x) weighs the mixture `routed` against one dense SwiGLU network of the same width as an expert.

    >>> ResidualMixture(MixtureOfExperts(8, num_experts=4, expert_hidden=16)).forward(torch.randn(2, 5, 8)).shape
    torch.Size([2, 5, 8])
    """

    def __init__(self, routed: MixtureOfExperts) -> None:
        super().__init__()
        _, dim, hidden = routed.experts.down_proj.shape
        self.routed = routed
        self.dense = Experts(dim, num_experts=1, hidden=hidden)
        self.coefficient = nn.Linear(dim, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        rows = tokens.reshape(-1, tokens.shape[-1])
        dense = self.dense(rows, torch.tensor([rows.shape[0]])).view_as(tokens)
        share = self.coefficient(tokens).float().softmax(dim=-1).to(tokens.dtype)  # (B, N, 2)
        return self.routed(tokens) * share[..., :1] + dense * share[..., 1:]  # type: ignore[no-any-return]
