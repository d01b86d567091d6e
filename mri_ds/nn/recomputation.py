"""Recomputation: a part of the network keeps its inputs alone, and runs again in the backward pass.

What a router chose the first time it chooses again: recomputed scores may differ in their last bit (another kernel, another order
of sums, a selection bias that has moved meanwhile), and a token on the edge between two experts would then send its gradient to
one that it never visited, and rows of another number to other ranks.
Source: Chen et al. 2016 (sublinear memory); torchtitan and NeMo-Automodel pin `topk` for the same reason.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

# What is run again: attention alone, whole transformer blocks, or these, the stem with the embedding, and the decoder
Recompute = Literal["none", "attention", "block", "full"]
LEVELS: tuple[Recompute, ...] = get_args(Recompute)
CHOICES = {torch.ops.aten.topk.default, torch.ops.aten.argmax.default}


def recomputed(run: Callable[..., Any], *args: Any) -> Any:
    """run(*args), of which only args and choices are kept for the backward pass. Without gradients nothing is kept at all."""
    if not torch.is_grad_enabled():
        return run(*args)
    if torch.compiler.is_compiling():  # compiled code computes the same twice, and knows no modes of ours
        return checkpoint(run, *args, use_reentrant=False)
    return checkpoint(run, *args, use_reentrant=False, context_fn=_pinned_choices)


def _pinned_choices() -> tuple[TorchDispatchMode, TorchDispatchMode]:
    chosen: list[Any] = []
    return _Keep(chosen), _ChooseAgain(chosen)


class _Keep(TorchDispatchMode):
    """Notes what every choice came to, in order."""

    def __init__(self, chosen: list[Any]) -> None:
        super().__init__()
        self.chosen = chosen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in CHOICES:
            self.chosen.append(_apart(out))
        return out


class _ChooseAgain(TorchDispatchMode):
    """Answers every choice with what was noted; a graph that is kept for a second backward pass starts at the first again."""

    def __init__(self, chosen: list[Any]) -> None:
        super().__init__()
        self.chosen, self.next = chosen, 0

    def __enter__(self) -> "_ChooseAgain":
        self.next = 0
        return super().__enter__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in CHOICES:
            return func(*args, **(kwargs or {}))
        self.next += 1
        return _apart(self.chosen[self.next - 1])


def _apart(out: Any) -> Any:
    """The same numbers without a graph: autograd writes a history of its own on what a mode returns."""
    return tree_map(torch.Tensor.detach, out)
