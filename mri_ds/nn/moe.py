"""Mixture of experts: each token visits its K best experts, and none is dropped.

Axes: B batch, N tokens, D width, E experts, F expert width, K experts per token, T = B * N * K routed rows.
In: tokens (B, N, D).  Out: tokens (B, N, D).
Source: Shazeer et al. 2017 (top-k routing); Shazeer 2020 (SwiGLU); DeepSeek-V3 (2024) section 2.1.2 for the selection bias.
The child names and weight layouts (`gate`, `experts.gate_up_proj`, `experts.down_proj`) are those that DeepSpeed's AutoEP
recognises, so that `training/expert_parallel.py` can spread the experts over ranks without this file knowing of it.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


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
        order = chosen.reshape(-1).argsort(stable=True)  # routed rows, expert by expert
        counts = torch.bincount(chosen.reshape(-1), minlength=self.gate.out_features)
        out = self.experts(rows[order // self.top_k], counts)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(order.shape[0], device=order.device))
        out = out[back].view(*weights.shape, tokens.shape[-1])  # (B*N, K, D), also for no token
        # weighted in float32, as AutoEP does: in bf16 a net then predicts what it was trained to, digit for digit
        return (
            (out * weights.to(torch.promote_types(out.dtype, torch.float32))[..., None]).sum(dim=1).to(out.dtype).view_as(tokens)
        )


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
        gate, up = self.gate_up_proj.chunk(2, dim=1)
        return grouped_swiglu(rows, counts, gate, up, self.down_proj)


def grouped_swiglu(
    rows: torch.Tensor, counts: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    """down_e(silu(gate_e x) * up_e x) for the e-th run of `counts[e]` rows; rows beyond sum(counts) give 0.

    rows (T, D), counts (E,) int, gate and up (E, F, D), down (E, D, F) -> (T, D).
    Autograd through a Python loop over `weight[e]` sends a gradient of the whole stack back for every expert; here each
    expert's product is written straight into its place of one gradient, forward and backward.
    """
    return _GroupedSwiGLU.apply(rows, counts, gate, up, down)  # type: ignore[no-any-return]


class _GroupedSwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, counts: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        gate, up, down = weights
        runs, idle, used = _runs(counts)
        ctx.runs, ctx.idle = runs, idle
        g = rows.new_empty(used, gate.shape[1])
        u = torch.empty_like(g)
        for e, run in runs:
            torch.mm(rows[run], gate[e].t(), out=g[run])
            torch.mm(rows[run], up[e].t(), out=u[run])
        hidden = F.silu(g).mul_(u)
        out = torch.empty_like(rows)
        out[used:] = 0
        for e, run in runs:
            torch.mm(hidden[run], down[e].t(), out=out[run])
        ctx.save_for_backward(rows, g, u, gate, up, down)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, g, u, gate, up, down = ctx.saved_tensors
        grad_out = grads[0].contiguous()
        grad_hidden = torch.empty_like(g)
        for e, run in ctx.runs:
            torch.mm(grad_out[run], down[e], out=grad_hidden[run])
        sigmoid = torch.sigmoid(g)
        silu = g * sigmoid
        grad_u = grad_hidden * silu
        grad_g = torch.addcmul(sigmoid, sigmoid, g - silu).mul_(grad_hidden).mul_(u)  # d silu / dg = s (1 + g - silu)
        hidden = silu.mul_(u)
        grad_rows = torch.empty_like(rows)
        grad_rows[g.shape[0] :] = 0
        grad_gate, grad_up, grad_down = (_empty_but(w, ctx.idle) for w in (gate, up, down))
        for e, run in ctx.runs:
            torch.mm(grad_out[run].t(), hidden[run], out=grad_down[e])
            torch.mm(grad_g[run].t(), rows[run], out=grad_gate[e])
            torch.mm(grad_u[run].t(), rows[run], out=grad_up[e])
            torch.mm(grad_g[run], gate[e], out=grad_rows[run])
            grad_rows[run].addmm_(grad_u[run], up[e])
        return grad_rows, None, grad_gate, grad_up, grad_down


def _runs(counts: torch.Tensor) -> tuple[list[tuple[int, slice]], list[int], int]:
    """(expert, its rows) of every expert that has any; the experts that have none; rows in all."""
    runs, idle, start = [], [], 0
    for expert, count in enumerate(counts.tolist()):
        if count:
            runs.append((expert, slice(start, start + count)))
        else:
            idle.append(expert)
        start += count
    return runs, idle, start


def _empty_but(weight: torch.Tensor, idle: list[int]) -> torch.Tensor:
    """Room for a weight gradient that is written expert by expert; experts that saw no row get 0."""
    grad = torch.empty_like(weight, memory_format=torch.contiguous_format)
    if idle:
        grad[idle] = 0
    return grad
