"""Recomputation: a part of the network keeps its inputs alone, and runs again in the backward pass.

What a router chose the first time it chooses again: recomputed scores may differ in their last bit (another kernel, another order
of sums, a selection bias that has moved meanwhile), and a token on the edge between two experts would then send its gradient to
one that it never visited, and rows of another number to other ranks.
Source: Chen et al. 2016 (sublinear memory); torchtitan and NeMo-Automodel pin `topk` for the same reason.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

# What is run again: attention alone, whole transformer blocks, or these, the stem with the embedding, and the decoder
Recompute = Literal["none", "attention", "block", "full"]
LEVELS: tuple[Recompute, ...] = get_args(Recompute)
CHOICES = {torch.topk, torch.Tensor.topk}  # as ours, AutoEP's and DeepSpeed's routers choose


def recomputed(run: Callable[..., Any], *args: Any) -> Any:
    """run(*args), of which only args and choices are kept for the backward pass. Without gradients nothing is kept at all."""
    if not torch.is_grad_enabled():
        return run(*args)
    if torch.compiler.is_compiling():  # compiled code computes the same twice, and knows no modes of ours
        return checkpoint(run, *args, use_reentrant=False)
    return checkpoint(run, *args, use_reentrant=False, context_fn=_pinned_choices)


def _pinned_choices() -> tuple[TorchFunctionMode, TorchFunctionMode]:
    chosen: list[torch.Tensor] = []
    return KeepChoices(chosen), ChooseAgain(chosen)


class KeepChoices(TorchFunctionMode):
    """Notes the indices of every `topk`, in order. Seen from Python, where nothing else is slowed down."""

    def __init__(self, chosen: list[torch.Tensor]) -> None:
        super().__init__()
        self.chosen = chosen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in CHOICES:
            self.chosen.append(out.indices.detach())
        return out


class ChooseAgain(TorchFunctionMode):
    """Writes over the indices of every `topk` those that were noted; a second backward pass starts at the first again."""

    def __init__(self, chosen: list[torch.Tensor]) -> None:
        super().__init__()
        self.chosen, self.next = chosen, 0

    def __enter__(self) -> "ChooseAgain":
        self.next = 0
        return super().__enter__()  # type: ignore[return-value]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in CHOICES:
            out.indices.copy_(self.chosen[self.next])
            self.next += 1
        return out
