"""Attention over a 3-D grid of tokens: every token with every other (FlashAttention), or inside windows (SparseAttention).

Axes: B batch, N tokens (D * H * W of the token grid, W fastest), D width, H heads, E head width, M windows, L tokens of a window.
In: tokens (B, N, D) and the grid (D, H, W) they lie on.  Out: tokens (B, N, D).
Both hold the same weights under the same names (`qkv`, `norm`, `out`); SparseAttention adds its position bias.
Source: Dao et al. 2022 (the kernel, reached through PyTorch's SDPA); Liu et al. 2021 (shifted windows, position bias);
Dehghani et al. 2023 (query-key normalisation); Su et al. 2021 (rotary positions), axial over the three axes of the grid.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Grid = tuple[int, int, int]
ROTARY_BASE = 100.0  # longest wavelength = 2 pi * 100 tokens: grids are tens of tokens long, not the thousands of a text


class FlashAttention(nn.Module):
    """Multi-head softmax attention of every token with every other, through `scaled_dot_product_attention`.

    dim: width, a multiple of num_heads. dropout: chance that an attention weight is dropped, in training only.
    qk_norm: queries and keys are divided by their RMS and scaled by a learned gain. rotary: they are turned by their place on
    the grid, so that a score depends on the offset between two tokens (the head width must then be even and at least 6).

    >>> FlashAttention(32, 2)(torch.randn(1, 24, 32), grid=(2, 3, 4)).shape
    torch.Size([1, 24, 32])
    """

    def __init__(self, dim: int, num_heads: int, *, dropout: float = 0.0, qk_norm: bool = True, rotary: bool = True) -> None:
        super().__init__()
        head_dim = _head_dim(dim, num_heads)
        if rotary and (head_dim % 2 or head_dim < 6):
            raise ValueError(f"rotary positions need an even head width of at least 6, got {dim} / {num_heads} = {head_dim}")
        self.num_heads, self.dropout, self.rotary = num_heads, dropout, rotary
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
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=self.dropout if self.training else 0.0)
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
    ) -> None:
        super().__init__()
        head_dim = _head_dim(dim, num_heads)
        if min(window) < 1:
            raise ValueError(f"window must be at least 1 token along every axis, got {tuple(window)}")
        self.num_heads, self.dropout, self.shift = num_heads, dropout, shift
        self.window: Grid = (window[0], window[1], window[2])
        self.qkv = nn.Linear(dim, 3 * dim)
        self.norm = QueryKeyNorm(head_dim) if qk_norm else nn.Identity()
        self.out = nn.Linear(dim, dim)
        self.position_bias = nn.Parameter(torch.zeros(num_heads, *(2 * w - 1 for w in window)))

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        window, shift, padded = self._layout(grid)
        windows = to_windows(tokens, grid, window, shift, padded)
        query_key, value = split_heads(self.qkv(windows), self.num_heads)
        query, key = self.norm(query_key).to(value.dtype).unbind(0)
        bias = self._bias(window, grid, shift, padded, batch=tokens.shape[0]).to(value.dtype)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
        return from_windows(self.out(rearrange(mixed, "m h l e -> m l (h e)")), grid, window, shift, padded)

    def _layout(self, grid: Grid) -> tuple[Grid, Grid, Grid]:
        """Window, shift and padded grid for this grid. An axis that one window covers is not shifted: there is no neighbour."""
        window = tuple(min(w, n) for w, n in zip(self.window, grid))
        shift = tuple(w // 2 if self.shift and w < n else 0 for w, n in zip(window, grid))
        padded = tuple(-(-n // w) * w for w, n in zip(window, grid))
        return window, shift, padded  # type: ignore[return-value]

    def _bias(self, window: Grid, grid: Grid, shift: Grid, padded: Grid, *, batch: int) -> Tensor:
        """What is added to the scores: (1, H, L, L), or (B * M, H, L, L) where some pairs are forbidden (-inf)."""
        index = offset_index(window, self.window, self.position_bias.device)
        bias = self.position_bias.flatten(1)[:, index][None]
        if not any(shift) and padded == grid:
            return bias
        allowed = window_mask(grid, window, shift, padded, bias.device)
        return bias.masked_fill(~allowed[:, None], float("-inf")).repeat(batch, 1, 1, 1)


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
    return heads[:2], heads[2]


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns pair (e, e + E/2) of heads (..., N, E) by the angle of cos and sin (N, E/2). Lengths are kept."""
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


@lru_cache(maxsize=64)
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


def to_windows(tokens: Tensor, grid: Grid, window: Grid, shift: Grid, padded: Grid) -> Tensor:
    """Tokens (B, N, D) -> windows (B * M, L, D) of the padded grid moved back by `shift`."""
    volume = tokens.unflatten(1, grid)
    if padded != grid:
        volume = F.pad(volume, [0, 0, *(p for n, m in zip(grid[::-1], padded[::-1]) for p in (0, m - n))])
    if any(shift):
        volume = volume.roll([-s for s in shift], dims=(1, 2, 3))
    d, h, w = window
    return rearrange(volume, "b (i d) (j h) (k w) c -> (b i j k) (d h w) c", d=d, h=h, w=w)


def from_windows(windows: Tensor, grid: Grid, window: Grid, shift: Grid, padded: Grid) -> Tensor:
    """The inverse of `to_windows`: (B * M, L, D) -> (B, N, D), padding dropped."""
    i, j, k = (p // w for p, w in zip(padded, window))
    d, h, w = window
    volume = rearrange(windows, "(b i j k) (d h w) c -> b (i d) (j h) (k w) c", i=i, j=j, k=k, d=d, h=h, w=w)
    if any(shift):
        volume = volume.roll(shift, dims=(1, 2, 3))
    return volume[:, : grid[0], : grid[1], : grid[2]].flatten(1, 3)


@lru_cache(maxsize=64)
def offset_index(window: Grid, full: Grid, device: torch.device) -> Tensor:
    """(L, L) int64: which entry of the bias table (2 * full - 1, flattened) belongs to the offset between two tokens."""
    with torch.inference_mode(False):
        axes = [torch.arange(n, device=device) for n in window]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
        offsets = places[:, None] - places[None] + torch.tensor([n - 1 for n in full], device=device)
        rows, columns = 2 * full[1] - 1, 2 * full[2] - 1
        return (offsets[..., 0] * rows + offsets[..., 1]) * columns + offsets[..., 2]


@lru_cache(maxsize=64)
def window_mask(grid: Grid, window: Grid, shift: Grid, padded: Grid, device: torch.device) -> Tensor:
    """(M, L, L) bool: two tokens may meet if both are real (or both padding) and on the same side of the shift's seam.

    Padding may meet padding: its rows must not be all -inf, or the softmax gives NaN; the result is cropped away.
    """
    with torch.inference_mode(False):
        kinds = []
        for n, s, p in zip(grid, shift, padded):
            place = torch.arange(p, device=device)  # along the axis, after the roll
            beyond_seam = place >= p - s
            is_padding = (place + s) % p >= n
            kinds.append((beyond_seam.long(), is_padding))
        seam = kinds[0][0][:, None, None] * 4 + kinds[1][0][None, :, None] * 2 + kinds[2][0][None, None]
        padding = kinds[0][1][:, None, None] | kinds[1][1][None, :, None] | kinds[2][1][None, None]
        region = torch.where(padding, -1, seam)[None, ..., None]
        region = to_windows(region.flatten(1, 3), padded, window, (0, 0, 0), padded)[..., 0]
        return region[:, :, None] == region[:, None, :]


def _head_dim(dim: int, num_heads: int) -> int:
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f"width {dim} cannot be split over {num_heads} heads: choose a multiple")
    return dim // num_heads


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
