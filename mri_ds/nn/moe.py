"""Mixture of experts: each token visits its K best experts, and none is dropped.

Axes: B batch, N tokens, D width, E experts, F expert width, K experts per token, T = B * N * K routed rows.
In: tokens (B, N, D).  Out: tokens (B, N, D).
Source: Shazeer et al. 2017 (top-k routing); Shazeer 2020 (SwiGLU); DeepSeek-V3 (2024) section 2.1.2 for the selection bias.
The child names and weight layouts (`gate`, `experts.gate_up_proj`, `experts.down_proj`) are those that DeepSpeed's AutoEP
recognises, so that `training/expert_parallel.py` can spread the experts over ranks without this file knowing of it.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from mri_ds.nn.grouped import grouped_swiglu


class MixtureOfExperts(nn.Module):
    """Softmax top-k router over SwiGLU experts; the K weights of a token sum to one.

    >>> MixtureOfExperts(32, num_experts=4, expert_hidden=16, top_k=2)(torch.randn(2, 10, 32)).shape
    torch.Size([2, 10, 32])
    """

    def __init__(self, dim: int, *, num_experts: int, expert_hidden: int, top_k: int = 2) -> None:
        super().__init__()
        if not 1 <= top_k <= num_experts:
            raise ValueError(f"top_k = {top_k} of {num_experts} experts: choose 1 <= top_k <= num_experts")
        self.top_k = top_k
        self.gate = Gate(dim, num_experts)
        self.experts = Experts(dim, num_experts=num_experts, hidden=expert_hidden)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        rows = tokens.reshape(-1, tokens.shape[-1])
        weights, chosen, _ = self.gate(rows, top_k=self.top_k)  # (B*N, K) both
        return weigh(through_experts(rows, chosen, self.experts, num_experts=self.gate.out_features), weights).view_as(tokens)


class Gate(nn.Linear):
    """Router: (T, D) -> weights (T, K) float32 that sum to one, expert indices (T, K) int64, and logits (T, E).

    `e_score_correction_bias` (E,) is added to the scores for *choosing* experts only, never to the weights: training moves it
    towards even load (training/expert_parallel.py).
    """

    e_score_correction_bias: torch.Tensor

    def __init__(self, dim: int, num_experts: int) -> None:
        super().__init__(dim, num_experts, bias=False)
        self.register_buffer("e_score_correction_bias", torch.zeros(num_experts))

    def forward(  # type: ignore[override]
        self, rows: torch.Tensor, *, top_k: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = super().forward(rows)
        scores = logits.float().softmax(dim=-1)
        chosen = (scores + self.e_score_correction_bias).topk(top_k, dim=-1, sorted=False).indices
        weights = scores.gather(1, chosen)
        return weights / (weights.sum(dim=-1, keepdim=True) + 1e-20), chosen, logits


class Experts(nn.Module):
    """E SwiGLU networks: gate_up_proj (E, 2F, D) holds the gate rows then the up rows, down_proj (E, D, F)."""

    def __init__(self, dim: int, *, num_experts: int, hidden: int) -> None:
        super().__init__()
        self.act_fn = F.silu  # read by AutoEP to check that it replaces SwiGLU by SwiGLU
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, 2 * hidden, dim))
        self.down_proj = nn.Parameter(torch.empty(num_experts, dim, hidden))
        nn.init.uniform_(self.gate_up_proj, -1 / math.sqrt(dim), 1 / math.sqrt(dim))
        nn.init.uniform_(self.down_proj, -1 / math.sqrt(hidden), 1 / math.sqrt(hidden))

    def forward(self, rows: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """rows (T, D) sorted by expert, counts (E,) rows of each -> (T, D)."""
        return grouped_swiglu(rows, counts, self.gate_up_proj, self.down_proj)


Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def through_experts(rows: torch.Tensor, chosen: torch.Tensor, experts: Product, *, num_experts: int) -> torch.Tensor:
    """Each row through each of its experts: rows (N, D), chosen (N, K) int64 -> (N, K, D).

    experts: (T, D) rows sorted by expert and how many belong to each (E,) -> (T, D), as `Experts`.
    """
    token, place, counts = arrange(chosen, num_experts, together=rows_together(rows))
    out = experts(rows.index_select(0, token), counts)
    return out.index_select(0, place).view(*chosen.shape, rows.shape[1])


def weigh(out: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """(N, K, D), weights (N, K) -> (N, D).

    In float32, as AutoEP does: in bf16 a net then predicts what it was trained to, digit for digit.
    """
    precise = out.to(torch.promote_types(out.dtype, torch.float32))
    return (precise * weights.to(precise.dtype)[..., None]).sum(dim=1).to(out.dtype)


def arrange(chosen: torch.Tensor, num_experts: int, *, together: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows sorted by expert, the runs filled up to multiples of `together` rows.

    chosen (N, K) int64 -> which row stands at each place (P,), P = N K + E (together - 1); where the k-th choice of each row
    stands (N K,); places of each expert (E,). What fills up is a row 0 that nobody takes back: its gradient is 0. All
    shapes are known beforehand, so that nothing waits for the numbers.
    """
    flat = chosen.reshape(-1)
    routed = torch.arange(flat.shape[0], device=flat.device)
    order = flat.argsort(stable=True)
    counts = flat.new_zeros(num_experts).scatter_add_(0, flat, torch.ones_like(flat))
    places = (counts + (together - 1)) // together * together
    moved = (places - counts).cumsum(0) - (places - counts)  # by what fills up the experts before
    place = torch.empty_like(flat).scatter_(0, order, routed + moved[flat[order]])
    token = flat.new_zeros(flat.shape[0] + num_experts * (together - 1)).scatter_(0, place, routed // chosen.shape[1])
    return token, place, places


def rows_together(rows: torch.Tensor) -> int:
    """Of how many rows an expert's run is made a multiple.

    In half precision PyTorch's products on a CPU are compiled for their number of rows, which differs from expert to expert and
    step to step: 1.4 ms for each, where the product of 128 rows with 128 x 544 weights takes 0.2 ms. So few numbers are used.
    """
    is_compiled_for = rows.device.type == "cpu" and rows.dtype in (torch.bfloat16, torch.float16)
    return 16 if is_compiled_for and len(rows) else 1
