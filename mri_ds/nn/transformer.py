"""Transformer encoder over a 3-D token grid, with recomputation.

Axes: B batch, N = d * h * w tokens, D width.
In: tokens (B, N, D) and their grid (d, h, w).  Out: tokens (B, N, D).
Source: pre-norm blocks; LayerScale (Touvron et al. 2021); stochastic depth (Huang et al. 2016); axial rotary positions, SwiGLU
and drop path as in Primus (Wald et al. 2025).
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from mri_ds.nn.attention import FlashAttention, SparseAttention
from mri_ds.nn.backends import PREFERENCE
from mri_ds.nn.moe import Experts, MixtureOfExperts
from mri_ds.nn.recomputation import Recompute, recomputed
from mri_ds.nn.residual import ResidualMixture

Grid = tuple[int, int, int]


class Encoder(nn.Module):
    """A stack of blocks. `recompute`: what runs again in the backward pass, the "attention" of each block or the whole "block".

    "full" is for the network around it, and here the same as "block".
    """

    def __init__(
        self,
        dim: int,
        num_layers: int,
        num_heads: int,
        *,
        num_experts: int,
        expert_hidden: int,
        top_k: int,
        use_moe: bool = True,
        residual_experts: bool = False,
        window: Grid | None = None,
        drop_path: float = 0.0,
        skip_dropped: bool = False,
        attention_dropout: float = 0.0,
        attention_backends: Sequence[str] = PREFERENCE,
    ) -> None:
        super().__init__()
        self.recompute: Recompute = "none"

        def feed_forward() -> nn.Module:
            if not use_moe:
                return FeedForward(dim, expert_hidden * top_k)
            routed = MixtureOfExperts(dim, num_experts=num_experts, expert_hidden=expert_hidden, top_k=top_k)
            return ResidualMixture(routed) if residual_experts else routed

        def attention(layer: int) -> nn.Module:
            if window is None:
                return FlashAttention(dim, num_heads, dropout=attention_dropout, backends=attention_backends)
            return SparseAttention(
                dim, num_heads, window=window, shift=bool(layer % 2), dropout=attention_dropout, backends=attention_backends
            )

        self.blocks = nn.ModuleList(
            EncoderBlock(
                attention=attention(i),
                feed_forward=feed_forward(),
                dim=dim,
                drop_path=drop_path * i / max(1, num_layers - 1),  # linearly deeper
                skip_dropped=skip_dropped,
            )
            for i in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
        for block in self.blocks:
            if self.recompute in ("block", "full"):
                tokens = recomputed(block, tokens, grid)
            else:
                tokens = block(tokens, grid, self.recompute == "attention")
        return self.norm(tokens)  # type: ignore[no-any-return]


class EncoderBlock(nn.Module):
    """x + attention(norm x), then x + feed_forward(norm x); each branch scaled per channel and dropped per sample."""

    def __init__(
        self, *, attention: nn.Module, feed_forward: nn.Module, dim: int, drop_path: float = 0.0, skip_dropped: bool = False
    ) -> None:
        super().__init__()
        self.norm1, self.attention, self.scale1 = nn.LayerNorm(dim), attention, LayerScale(dim)
        self.norm2, self.moe, self.scale2 = nn.LayerNorm(dim), feed_forward, LayerScale(dim)
        self.drop = StochasticDepth(drop_path, skip=skip_dropped)

    def forward(self, tokens: torch.Tensor, grid: Grid, recompute_attention: bool = False) -> torch.Tensor:
        def attend(x: torch.Tensor) -> torch.Tensor:
            return self.scale1(self.attention(self.norm1(x), grid))  # type: ignore[no-any-return]

        tokens = tokens + self.drop(tokens, (lambda x: recomputed(attend, x)) if recompute_attention else attend)
        return tokens + self.drop(tokens, lambda x: self.scale2(self.moe(self.norm2(x))))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """One dense SwiGLU network, (B, N, D) -> (B, N, D): the expert layer with a single expert and no router."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.experts = Experts(dim, num_experts=1, hidden=hidden)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        rows = tokens.reshape(-1, tokens.shape[-1])
        return self.experts(rows, torch.tensor([rows.shape[0]])).view_as(tokens)  # type: ignore[no-any-return]


class LayerScale(nn.Module):
    """A learned gain per channel that starts small, so that deep stacks start near the identity."""

    def __init__(self, dim: int, initial: float = 0.1) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gain


class StochasticDepth(nn.Module):
    """Drops a residual branch per sample with chance `prob` in training; scales the kept ones so the expectation stays.

    skip: only the kept samples go through the branch. With none kept the branch is called all the same, on no sample: ranks
    that share weights or experts (ZeRO-3, expert parallelism) exchange something at every module call and would wait for ever
    for one that makes fewer. Without it all samples go through and the dropped ones count 0: the same result, but a router
    counts their tokens too.

    >>> StochasticDepth(0.5).eval()(torch.ones(2, 3), lambda x: 2 * x)
    tensor([[2., 2., 2.],
            [2., 2., 2.]])
    """

    def __init__(self, prob: float, *, skip: bool = False) -> None:
        super().__init__()
        if not 0 <= prob < 1:
            raise ValueError(f"drop probability {prob}: choose 0 <= prob < 1")
        self.prob, self.skip = prob, skip

    def forward(self, x: torch.Tensor, branch: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """x (B, ...) -> branch(x) of the same shape, 0 for the dropped samples and over 1 - prob for the others."""
        if not self.training or self.prob == 0:
            return branch(x)
        keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= self.prob
        if not self.skip:
            out = branch(x)
            return out * (keep / (1 - self.prob)).to(out.dtype)
        kept = keep.flatten().nonzero().flatten()
        out = branch(x.index_select(0, kept)) / (1 - self.prob)
        return torch.zeros_like(x, dtype=out.dtype).index_add(0, kept, out)
