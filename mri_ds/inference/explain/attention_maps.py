"""What attention read, computed again from what went into it: softmax attention keeps no map of its own.

Axes: B batch, N tokens, H heads, E head width, M windows, L tokens of a window.
In: an attention module of nn/attention.py, the tokens (B, N, D) that it was given and their grid.  Out: maps, or what weights on
its outputs come to on its inputs. A map is the mean over heads; each of its rows, what one token reads, sums to 1.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from mri_ds.nn.attention import FlashAttention, SparseAttention, rotary_table, rotate, split_heads
from mri_ds.nn.cross_task import ReadImage
from mri_ds.nn.windows import Grid, cut, offset_index

SCORES_AT_ONCE = 2**24  # of all heads: 64 MiB in float32


def shares(query: Tensor, key: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """(B, H, N, E) and (B, H, M, E) -> (B, H, N, M): rows of non-negative numbers that sum to 1."""
    return (query @ key.mT * query.shape[-1] ** -0.5 + bias).softmax(dim=-1)


def pull_back(attention: nn.Module, tokens: Tensor, grid: Grid, weights: Tensor) -> Tensor:
    """weights (B, N) on the outputs -> (B, N) on the inputs: weights @ map, a block of rows at a time. The sum stays."""
    if isinstance(attention, SparseAttention):
        return _through_windows(attention, tokens, grid, weights)
    assert isinstance(attention, FlashAttention), type(attention)
    query, key = query_key(attention, tokens, grid)
    step = max(1, SCORES_AT_ONCE // (query.shape[1] * query.shape[2]))
    got = torch.zeros_like(weights)
    for a in range(0, query.shape[2], step):
        rows = shares(query[:, :, a : a + step], key).mean(dim=1)
        got += torch.einsum("bq,bqk->bk", weights[:, a : a + step], rows)
    return got


def query_key(attention: FlashAttention, tokens: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """(B, H, N, E) each, normalised and turned as the module does."""
    both = attention.norm(split_heads(attention.qkv(tokens), attention.num_heads)[0])
    if attention.rotary:
        both = rotate(both, *rotary_table(grid, both.shape[-1], tokens.device, both.dtype))
    query, key = both.unbind(0)
    return query, key


def image_shares(read: ReadImage, queries: Tensor, tokens: Tensor) -> Tensor:
    """What task tokens (B, T, D) read of image tokens (B, N, D): (B, H, T, N)."""
    query = rearrange(read.query(queries), "b t (h e) -> b h t e", h=read.num_heads)
    key, _ = rearrange(read.key_value(tokens), "b n (s h e) -> s b h n e", s=2, h=read.num_heads)
    return shares(query, key)


def _through_windows(attention: SparseAttention, tokens: Tensor, grid: Grid, weights: Tensor) -> Tensor:
    window: Grid = tuple(min(w, n) for w, n in zip(attention.window, grid))  # type: ignore[assignment]
    shift: Grid = tuple(w // 2 if attention.shift and w < n else 0 for w, n in zip(window, grid))  # type: ignore[assignment]
    windows, batch = cut(grid, window, shift, tokens.device), len(tokens)
    query, key = attention.norm(split_heads(attention.qkv(windows.take(tokens)), attention.num_heads)[0]).unbind(0)
    bias = attention.position_bias.flatten(1)[:, offset_index(window, attention.window, tokens.device)]
    is_token = torch.zeros(windows.token.numel(), dtype=torch.bool, device=tokens.device)
    is_token[windows.place] = True  # places beyond the grid repeat a token, and ask for nothing
    asked = windows.take(weights[..., None])[..., 0] * is_token.view(windows.token.shape).repeat_interleave(batch, dim=0)
    got = torch.zeros_like(asked)
    for start, stop, meets in windows.runs:
        mask = bias if meets is None else bias.masked_fill(~meets, float("-inf"))
        step = max(1, SCORES_AT_ONCE // mask.numel())
        for a in range(start * batch, stop * batch, step):
            part = slice(a, min(a + step, stop * batch))
            got[part] = torch.einsum("wq,wqk->wk", asked[part], shares(query[part], key[part], mask).mean(dim=1))
    return windows.give_back(got[..., None], batch)[..., 0]


@contextmanager
def inputs_of(modules: dict[str, nn.Module]) -> Iterator[dict[str, tuple[Any, ...]]]:
    """While it lasts, what each module was last given is put down under its name: positional arguments, then the named ones."""
    seen: dict[str, tuple[Any, ...]] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen[name] = (*args, *kwargs.values())

        return hook

    handles = [module.register_forward_pre_hook(note(name), with_kwargs=True) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
