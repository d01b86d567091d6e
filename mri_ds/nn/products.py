"""Matrix products of several layers, each with the bits that it has alone.

Axes: T layers.  The rounding of one batched product depends on how many share it, so there is one product for each; and where a
tensor begins decides in which order a product sums, so those within a stack are moved to where PyTorch puts one of its own.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

ALIGNMENT = 64  # bytes, of what PyTorch allocates


def products(a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor:
    """a (T, B, C) @ b (T, C, O) -> (T, B, O). Into `out`: without gradients, and in the precision of `a` under autocast too."""
    pairs = [(_aligned(one), _aligned(other)) for one, other in zip(a.unbind(), b.unbind())]
    if out is None:
        return stacked([one @ other for one, other in pairs])
    for pair, place in zip(pairs, out.unbind()):
        if _is_aligned(place):
            torch.mm(*pair, out=place)
        else:
            place.copy_(torch.mm(*pair, out=torch.empty_like(place)))
    return out


def add_products(totals: Sequence[Tensor], a: Tensor, b: Tensor) -> None:
    """Adds a (T, B, C) @ b (T, C, O) to T totals (B, O), which may be of a higher precision."""
    for total, one, other in zip(totals, a.unbind(), b.unbind()):
        if total.dtype == one.dtype:
            total.addmm_(_aligned(one), _aligned(other))  # without a temporary of its size
        else:
            total += _aligned(one) @ _aligned(other)


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """As torch.stack, without the copy where there is one."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(list(tensors))


def _aligned(x: Tensor) -> Tensor:
    return x if _is_aligned(x) else x.clone()


def _is_aligned(x: Tensor) -> bool:
    """What is only traced has no address."""
    return torch.compiler.is_compiling() or isinstance(x, FakeTensor) or x.data_ptr() % ALIGNMENT == 0
