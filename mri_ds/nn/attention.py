"""Attention over a 3-D grid of tokens: every token with every other (FlashAttention), or inside windows (SparseAttention).

Axes: B batch, N tokens (D * H * W of the token grid, W fastest), D width, H heads, E head width, M windows, L tokens of a window.
In: tokens (B, N, D) and the grid (D, H, W) they lie on.  Out: tokens (B, N, D).
Both hold the same weights under the same names (`qkv`, `norm`, `out`); SparseAttention adds its position bias.
Source: Dao et al. 2022 (the kernel, reached through PyTorch's SDPA); Liu et al. 2021 (shifted windows, position bias);
Dehghani et al. 2023 (query-key normalisation); Su et al. 2021 (rotary positions), axial over the three axes of the grid.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from mri_ds.nn.backends import PREFERENCE, attend, check_backends
from mri_ds.nn.tables import table
from mri_ds.nn.windows import Grid, attend_windows, cut, offset_index

ROTARY_BASE = 100.0  # longest wavelength = 2 pi * 100 tokens: grids are tens of tokens long, not the thousands of a text


class FlashAttention(nn.Module):
    """Multi-head softmax attention of every token with every other, through `scaled_dot_product_attention`.

    dim: width, a multiple of num_heads. dropout: chance that an attention weight is dropped, in training only.
    qk_norm: queries and keys are divided by their RMS and scaled by a learned gain. rotary: they are turned by their place on
    the grid, so that a score depends on the offset between two tokens (the head width must then be even and at least 6).
    backends: names of `backends.BACKENDS`, the best first; the first that takes the case computes it.

    >>> FlashAttention(32, 2)(torch.randn(1, 24, 32), grid=(2, 3, 4)).shape
    torch.Size([1, 24, 32])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        dropout: float = 0.0,
        qk_norm: bool = True,
        rotary: bool = True,
        backends: Sequence[str] = PREFERENCE,
    ) -> None:
        super().__init__()
        head_dim = _head_dim(dim, num_heads)
        if rotary and (head_dim % 2 or head_dim < 6):
            raise ValueError(f"rotary positions need an even head width of at least 6, got {dim} / {num_heads} = {head_dim}")
        self.num_heads, self.dropout, self.rotary = num_heads, dropout, rotary
        self.backends = check_backends(backends)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.norm = QueryKeyNorm(head_dim) if qk_norm else nn.Identity()
        self.out = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        query_key, value = split_heads(self.qkv(tokens), self.num_heads)
        query_key = self.norm(query_key)
        if self.rotary:
            cos, sin = rotary_table(grid, query_key.shape[-1], tokens.device, _precise(tokens.dtype))
            query_key = rotate(query_key, cos, sin)
        query, key = query_key.to(value.dtype).unbind(0)
        mixed = attend(query, key, value, dropout=self.dropout if self.training else 0.0, backends=self.backends)
        return self.out(rearrange(mixed, "b h n e -> b n (h e)"))


class SparseAttention(nn.Module):
    """The same inside windows of the grid: O(N * L) in place of O(N * N).

    window: edge lengths in tokens, cut to the grid where that is smaller. shift: windows are moved by half their length, so
    that layers with and without it in turn join neighbours. Grids that windows do not divide are padded; no token ever sees
    padding or, across the seam of the shift, the far side of the volume. Positions enter as one learned bias per head and
    offset, zero at the start.

    >>> SparseAttention(32, 2, window=(2, 2, 2), shift=True)(torch.randn(1, 60, 32), grid=(3, 4, 5)).shape
    torch.Size([1, 60, 32])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        window: Grid = (4, 4, 4),
        shift: bool = False,
        dropout: float = 0.0,
        qk_norm: bool = True,
        backends: Sequence[str] = PREFERENCE,
    ) -> None:
        super().__init__()
        head_dim = _head_dim(dim, num_heads)
        if min(window) < 1:
            raise ValueError(f"window must be at least 1 token along every axis, got {tuple(window)}")
        self.num_heads, self.dropout, self.shift = num_heads, dropout, shift
        self.window: Grid = (window[0], window[1], window[2])
        self.backends = check_backends(backends)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.norm = QueryKeyNorm(head_dim) if qk_norm else nn.Identity()
        self.out = nn.Linear(dim, dim)
        self.position_bias = nn.Parameter(torch.zeros(num_heads, *(2 * w - 1 for w in window)))

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        window: Grid = tuple(min(w, n) for w, n in zip(self.window, grid))  # type: ignore[assignment]
        # an axis that one window covers is not shifted: there is no neighbour
        shift: Grid = tuple(w // 2 if self.shift and w < n else 0 for w, n in zip(window, grid))  # type: ignore[assignment]
        windows, batch = cut(grid, window, shift, tokens.device), len(tokens)
        query_key, value = split_heads(self.qkv(windows.take(tokens)), self.num_heads)
        query, key = self.norm(query_key).to(value.dtype).unbind(0)
        bias = self.position_bias.flatten(1)[:, offset_index(window, self.window, tokens.device)].to(value.dtype)
        dropout = self.dropout if self.training else 0.0
        mixed = attend_windows(query, key, value, bias, windows, batch=batch, dropout=dropout, backends=self.backends)
        return self.out(windows.give_back(rearrange(mixed, "m h l e -> m l (h e)"), batch))


class QueryKeyNorm(nn.Module):
    """Divides queries and keys (2, B, H, N, E) by their root mean square over E, then scales by a learned gain each.

    Computed and returned in at least float32: the rotation that follows wants it, and one rounding is better than two.
    """

    def __init__(self, head_dim: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.gain = nn.Parameter(torch.ones(2, head_dim))

    def forward(self, query_key: Tensor) -> Tensor:
        precise = query_key.to(_precise(query_key.dtype))
        scale = torch.rsqrt(precise.square().mean(-1, keepdim=True) + self.eps)
        return precise * scale * self.gain.to(precise.dtype)[:, None, None, None]


def split_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """(B, N, 3 D) -> queries and keys (2, B, H, N, E), values (B, H, N, E)."""
    heads = rearrange(qkv, "b n (s h e) -> s b h n e", s=3, h=num_heads)
    query_key, value = heads.split([2, 1])  # its gradient is put together once; that of two slices would be padded and added
    return query_key, value.squeeze(0)


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns pair (e, e + E/2) of heads (..., N, E) by the angle of cos and sin (N, E/2). Lengths are kept."""
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


@table
def rotary_table(grid: Grid, head_dim: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines (N, E/2) of the angles for each token of the grid: the pairs of a head are dealt to the three axes.

    Kept outside the modules: no state to save or cast. Made outside inference mode, since training may read it later.
    """
    pairs = head_dim // 2
    counts = [pairs // 3 + (axis < pairs % 3) for axis in range(3)]
    with torch.inference_mode(False), torch.no_grad():
        axes = [torch.arange(n, device=device, dtype=torch.float64) for n in grid]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
        speeds = [ROTARY_BASE ** -(torch.arange(n, device=device, dtype=torch.float64) / n) for n in counts]
        angles = torch.cat([places[:, axis, None] * speeds[axis] for axis in range(3)], dim=-1)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def _head_dim(dim: int, num_heads: int) -> int:
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f"width {dim} cannot be split over {num_heads} heads: choose a multiple")
    return dim // num_heads


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
