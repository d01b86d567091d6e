"""Attention inside windows of a token grid: which token stands where, and the product over windows a part at a time.

Axes: B batch, N tokens of the grid (W fastest), M windows, L tokens of a window, H heads, E head width.
Windows that forbid the same pairs (those at one face of the grid, say) stand together, so that one (L, L) mask serves a whole
run of them and none is ever made per window. The product goes a few windows at a time, small enough for the cache, and keeps
no scores for the backward pass: on a CPU, PyTorch's own path for a learned bias writes and keeps all (M, H, L, L) of them.
Source: Liu et al. 2021 (shifted windows); Dao et al. 2022 (scores computed again in the backward pass).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mri_ds.nn.backends import attend
from mri_ds.nn.tables import table

Grid = tuple[int, int, int]
SCORES_AT_ONCE = 2**20  # of all heads: 4 MiB in float32


@dataclass(frozen=True)
class Windows:
    """Where the tokens of a grid stand once it is cut into windows.

    token (M, L) int64: the token at each place; places beyond the grid repeat a token near them. place (N,) int64: where each
    token stands, of M * L. runs: (first window, last + 1, which pairs may meet (L, L) bool, or None for all), in order.
    """

    token: Tensor
    place: Tensor
    runs: tuple[tuple[int, int, Tensor | None], ...]

    def take(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (M * B, L, D), the batch fastest."""
        batch, num, width = tokens.shape
        start = torch.arange(batch, device=tokens.device) * num
        index = (self.token[:, None] + start[:, None]).flatten()
        return tokens.reshape(-1, width).index_select(0, index).view(-1, self.token.shape[1], width)

    def give_back(self, windows: Tensor, batch: int) -> Tensor:
        """The inverse, (M * B, L, D) -> (B, N, D): places beyond the grid are dropped."""
        length, width = windows.shape[1:]
        window, inside = self.place // length, self.place % length
        index = (window * batch + torch.arange(batch, device=windows.device)[:, None]) * length + inside
        return windows.reshape(-1, width).index_select(0, index.flatten()).view(batch, len(self.place), width)


def cut(grid: Grid, window: Grid, shift: Grid, device: torch.device) -> Windows:
    """Windows of `grid` moved by `shift`: two tokens meet if floor((place - shift) / window) agrees along every axis.

    The windows at the near face are cut by the shift; what is left of them shares a window with what is left at the far face,
    and the mask keeps the two apart, as it keeps both from the places beyond the grid.
    """
    return Windows(*_cut(grid, window, shift, device))


@table
def _cut(grid: Grid, window: Grid, shift: Grid, device: torch.device) -> tuple[Any, ...]:
    """The fields of Windows."""
    padded = [-(-n // w) * w for n, w in zip(grid, window)]
    with torch.inference_mode(False):
        axes = []
        for n, s, p in zip(grid, shift, padded):
            place = (torch.arange(p) + s) % p
            part = torch.where(place >= n, 2, (torch.arange(p) >= p - s).long())  # 0 inside, 1 beyond the seam, 2 no token
            axes.append((place.clamp(max=n - 1), part))
        (d, part_d), (h, part_h), (w, part_w) = axes
        token = (d[:, None, None] * grid[1] + h[:, None]) * grid[2] + w
        part = (part_d[:, None, None] * 3 + part_h[:, None]) * 3 + part_w
        is_token = (part_d[:, None, None] < 2) & (part_h[:, None] < 2) & (part_w < 2)
        part = torch.where(is_token, part, -1)
        token, part, is_token = (_by_window(x, window) for x in (token, part, is_token))
        kinds, kind = part.unique(dim=0, return_inverse=True)
        order = kind.argsort(stable=True)
        token, is_token = token[order], is_token[order]
        place = torch.empty(grid[0] * grid[1] * grid[2], dtype=torch.int64)
        place[token[is_token]] = torch.arange(token.numel()).view_as(token)[is_token]
        runs, start = [], 0
        for row, count in zip(kinds, kind.bincount().tolist()):
            meets = row[:, None] == row  # places beyond the grid meet one another: softmax over nothing would give NaN
            runs.append((start, start + count, None if bool(meets.all()) else meets.to(device)))
            start += count
        return token.to(device), place.to(device), tuple(runs)


def _by_window(volume: Tensor, window: Grid) -> Tensor:
    """(D, H, W) -> (M, L)."""
    d, h, w = window
    i, j, k = (n // size for n, size in zip(volume.shape, window))
    return volume.view(i, d, j, h, k, w).permute(0, 2, 4, 1, 3, 5).reshape(i * j * k, d * h * w)


@table
def offset_index(window: Grid, full: Grid, device: torch.device) -> Tensor:
    """(L, L) int64: which entry of the bias table (2 * full - 1, flattened) belongs to the offset between two tokens."""
    with torch.inference_mode(False):
        axes = [torch.arange(n, device=device) for n in window]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
        offsets = places[:, None] - places[None] + torch.tensor([n - 1 for n in full], device=device)
        rows, columns = 2 * full[1] - 1, 2 * full[2] - 1
        return (offsets[..., 0] * rows + offsets[..., 1]) * columns + offsets[..., 2]


def attend_windows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    windows: Windows,
    *,
    batch: int,
    dropout: float,
    backends: tuple[str, ...],
) -> Tensor:
    """Softmax attention in every window: query, key, value (M * B, H, L, E), bias (H, L, L) -> (M * B, H, L, E).

    On a CPU a part at a time; on a GPU, compiled, or with dropout one call for each run of windows.
    """
    runs = [(start * batch, stop * batch, meets) for start, stop, meets in windows.runs]
    if query.device.type == "cpu" and not dropout and not torch.compiler.is_compiling():
        return _PartByPart.apply(query, key, value, bias, runs, backends)  # type: ignore[no-any-return]
    parts = [
        attend(query[a:b], key[a:b], value[a:b], bias=_masked(bias, meets), dropout=dropout, backends=backends)
        for a, b, meets in runs
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class _PartByPart(torch.autograd.Function):
    """Forward by the kernels of PyTorch; backward by the softmax's own rule, the scores made again."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, runs: list[Any], backends: tuple[str, ...]
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, bias)
        ctx.runs = runs
        windows, heads, length, width = query.shape
        out = query.new_empty(windows, length, heads, width).transpose(1, 2)  # so that heads join without a copy
        for a, b, mask in _parts(runs, bias):
            out[a:b] = attend(query[a:b], key[a:b], value[a:b], bias=mask, backends=backends)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias = ctx.saved_tensors
        grad, scale = grads[0], query.shape[-1] ** -0.5
        grad_query, grad_key, grad_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        grad_bias = torch.zeros(bias.shape, dtype=torch.promote_types(bias.dtype, torch.float32), device=bias.device)
        for a, b, mask in _parts(ctx.runs, bias):
            q, k, v, g = query[a:b], key[a:b], value[a:b], grad[a:b]
            share = torch.softmax((q @ k.mT).to(grad_bias.dtype).mul_(scale).add_(mask), dim=-1)
            grad_value[a:b] = share.to(v.dtype).mT @ g
            change = (g @ v.mT).to(share.dtype)
            change = change.sub_((change * share).sum(-1, keepdim=True)).mul_(share)  # gradient of the scores
            grad_bias += change.sum(0)
            change = change.mul_(scale).to(q.dtype)
            grad_query[a:b], grad_key[a:b] = change @ k, change.mT @ q
        return grad_query, grad_key, grad_value, grad_bias.to(bias.dtype), None, None


def _parts(runs: list[tuple[int, int, Tensor | None]], bias: Tensor) -> Any:
    """(first window, last + 1, what is added to their scores (1, H, L, L)) of each part."""
    size = max(1, SCORES_AT_ONCE // bias.numel())
    for start, stop, meets in runs:
        mask = _masked(bias, meets)
        for a in range(start, stop, size):
            yield a, min(a + size, stop), mask


def _masked(bias: Tensor, meets: Tensor | None) -> Tensor:
    return bias[None] if meets is None else bias.masked_fill(~meets, float("-inf"))[None]
