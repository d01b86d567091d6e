"""Which of PyTorch's kernels computes softmax attention: the user's preference, and what really ran.

Axes: B batch, H heads, N queries, M keys, E head width.
Source: torch.nn.attention.sdpa_kernel; flash: Dao et al. 2022; efficient: Rabe and Staats 2021.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
PREFERENCE = tuple(BACKENDS)
_REFUSALS = ("No available kernel", "No viable backend")  # PyTorch's words on a GPU, on a CPU


def check_backends(backends: Sequence[str]) -> tuple[str, ...]:
    """The same as a tuple; ValueError for an unknown name, a name given twice, or none at all."""
    unknown = [name for name in backends if name not in BACKENDS]
    if unknown or not backends or len(set(backends)) < len(backends):
        raise ValueError(f"attention back ends {list(backends)}: name some of {', '.join(BACKENDS)}, each once, the best first")
    return tuple(backends)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    bias: Tensor | None = None,
    dropout: float = 0.0,
    backends: tuple[str, ...] = PREFERENCE,
) -> Tensor:
    """softmax(query key^T / sqrt(E) + bias) value by the first of `backends` that can: query (B, H, N, E), key and value
    (B, H, M, E), bias broadcast to (B, H, N, M) -> (B, H, N, E). ValueError when none of them can.

    `math` can do everything, so what stands behind it is never asked: a CPU, whose kernels PyTorch tries in an order of its
    own, obeys too.
    """
    if bias is not None and not len(query):  # PyTorch would leave the bias without a gradient, and ZeRO-3 waiting for it
        return query + 0 * (key.sum() + value.sum() + bias.sum())
    asked = backends[: backends.index("math") + 1] if "math" in backends else backends
    with sdpa_kernel([BACKENDS[name] for name in asked], set_priority=True):
        try:
            return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
        except RuntimeError as err:
            if not any(words in str(err) for words in _REFUSALS):
                raise
            case = f"{query.dtype} on {query.device.type}, head width {query.shape[-1]}, dropout {dropout:g}"
            raise ValueError(f"no attention back end among {', '.join(asked)} takes {case}: add 'math'") from err


class BackendsRan(TorchFunctionMode):
    """Tells which kernel computed each attention inside it, by the operators that PyTorch came to, not by what was asked.

    >>> with BackendsRan() as ran:
    ...     _ = attend(*torch.randn(3, 1, 2, 8, 16), backends=("math",))
    >>> ran.names
    ['math']
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        fused = _FusedKernel()
        with fused:
            out = func(*args, **(kwargs or {}))
        self.names.append(fused.name or "math")  # the math back end is made of plain products
        return out


class _FusedKernel(TorchDispatchMode):
    """The back end of the fused attention operator that came by, None when none did."""

    name: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        operator = func.name()
        for name in PREFERENCE:
            if f"_scaled_dot_product_{name}_attention" in operator:
                self.name = name
        return func(*args, **(kwargs or {}))
