"""Cross-task attention: one token per task reads the image tokens, then the other tasks' tokens.

Axes: B batch, N image tokens, T tasks, D width, H heads, E head width.
In: tokens (B, N, D).  Out: task tokens (B, T, D), in the order in which the tasks were counted.
Source: Carion et al. 2020 (learned queries that read an image and one another), in the pre-norm form of Xiong et al. 2020.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mri_ds.nn.attention import FlashAttention


class CrossTaskAttention(nn.Module):
    """Learned task tokens that gather what their task needs from the image and share it.

    The image tokens are read and left as they are. Tasks are told apart by their learned tokens alone, so
    reordering those reorders the result. `branches` adds a network of its own for every task, see TaskBranches.

    >>> CrossTaskAttention(32, 2, num_tasks=3)(torch.randn(2, 64, 32)).shape
    torch.Size([2, 3, 32])
    """

    def __init__(self, dim: int, num_heads: int, num_tasks: int, *, branches: bool = False) -> None:
        super().__init__()
        self.task_tokens = nn.Parameter(torch.randn(num_tasks, dim) * 0.02)
        self.norm_tasks, self.norm_image = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.read_image = ReadImage(dim, num_heads)
        self.norm_self = nn.LayerNorm(dim)
        self.read_tasks = FlashAttention(dim, num_heads, rotary=False)
        self.norm_mlp = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.branches = TaskBranches(dim, num_tasks) if branches else None

    def forward(self, tokens: Tensor) -> Tensor:
        tasks = self.task_tokens.expand(len(tokens), -1, -1)
        tasks = tasks + self.read_image(self.norm_tasks(tasks), self.norm_image(tokens))
        tasks = tasks + self.read_tasks(self.norm_self(tasks), grid=(tasks.shape[1], 1, 1))
        tasks = tasks + self.mlp(self.norm_mlp(tasks))
        return tasks if self.branches is None else self.branches(tasks)  # type: ignore[no-any-return]


class TaskBranches(nn.Module):
    """One network per task, (B, T, D) -> (B, T, D), all in one product; exactly the identity until it has learned something."""

    def __init__(self, dim: int, num_tasks: int) -> None:
        super().__init__()
        bound = dim**-0.5
        self.norm = nn.LayerNorm(dim)
        self.inner = nn.Parameter(torch.empty(num_tasks, dim, 2 * dim).uniform_(-bound, bound))
        self.outer = nn.Parameter(torch.zeros(num_tasks, 2 * dim, dim))

    def forward(self, tasks: Tensor) -> Tensor:
        hidden = F.gelu(torch.einsum("btd,tdh->bth", self.norm(tasks), self.inner))
        return tasks + torch.einsum("bth,thd->btd", hidden, self.outer)


class ReadImage(nn.Module):
    """Attention of queries (B, T, D) over tokens (B, N, D) -> (B, T, D)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"width {dim} cannot be split over {num_heads} heads: choose a multiple")
        self.num_heads = num_heads
        self.query, self.key_value, self.out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        query = rearrange(self.query(queries), "b t (h e) -> b h t e", h=self.num_heads)
        key, value = rearrange(self.key_value(tokens), "b n (s h e) -> s b h n e", s=2, h=self.num_heads)
        return self.out(rearrange(F.scaled_dot_product_attention(query, key, value), "b h t e -> b t (h e)"))
