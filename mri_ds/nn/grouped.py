"""Products of sorted rows with the weights of their experts: one SwiGLU network for each run of rows.

Axes: T rows sorted by expert, D width, E experts, F expert width.
In: rows (T, D), how many belong to each expert, the experts' weights.  Out: rows (T, D).
A Python loop over experts under autograd sends a gradient of the whole weight stack back for each of them. Here every product is
written straight into its place of one result and one gradient, and what stands between the products is done expert by expert,
while the rows are still in the cache: no intermediate of all rows but the one that the backward pass reads.
Source: Shazeer 2020 (SwiGLU).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ops = torch.ops.aten


def grouped_swiglu(rows: Tensor, counts: Tensor, *weights: Tensor) -> Tensor:
    """down_e(silu(gate_e x) * up_e x) for the e-th run of `counts[e]` rows; rows beyond sum(counts) give 0.

    rows (T, D), counts (E,) int -> (T, D). weights: gate and up (E, F, D) apart, or one (E, 2F, D) that holds a gate's rows and
    then its up rows (one product where there would be two); last down (E, D, F).
    """
    if torch.compiler.is_compiling():  # which knows no lists of counts: one operator that it does not look into
        return compiled_swiglu(rows, counts, list(weights))[0]
    return _GroupedSwiGLU.apply(rows, counts, *weights)  # type: ignore[no-any-return]


class _GroupedSwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: Tensor, *weights: Tensor) -> Tensor:
        ctx.counts = counts.tolist()
        out, *inner = _forward(rows, ctx.counts, weights, keep=any(ctx.needs_input_grad))
        ctx.save_for_backward(rows, *inner, *weights)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, *rest = ctx.saved_tensors
        num_inner = len(rest) // 2
        grad_rows, *of_weights = _backward(grads[0], rows, ctx.counts, rest[:num_inner], rest[num_inner:])
        return grad_rows, None, *of_weights


def _forward(rows: Tensor, counts: Sequence[int], weights: Sequence[Tensor], *, keep: bool) -> list[Tensor]:
    """The result, and what the weights of gate and up made of the rows (T, F or 2F): of all rows if `keep`, else room for it."""
    *inner, down = weights
    longest = max(counts)
    out = torch.empty_like(rows)
    made = [rows.new_empty(len(rows) if keep else longest, w.shape[1]) for w in inner]
    room = rows.new_empty(longest, down.shape[2])
    for e, x, y, *kept in _runs(counts, rows, out, *(made if keep else [])):
        here = kept or [m[: len(x)] for m in made]
        for h, w in zip(here, inner):
            torch.mm(x, w[e].t(), out=h)
        gate, up = _halves(here)
        hidden = ops.silu.out(gate, out=room[: len(x)]).mul_(up)
        torch.mm(hidden, down[e].t(), out=y)
    out[sum(counts) :] = 0
    return [out, *made]


def _backward(
    grad: Tensor, rows: Tensor, counts: Sequence[int], made: Sequence[Tensor], weights: Sequence[Tensor]
) -> list[Tensor]:
    """Gradients of the rows and of each of `weights`."""
    *inner, down = weights
    grad, longest = grad.contiguous(), max(counts)
    grad_rows = torch.empty_like(rows)
    of_weights = [torch.empty_like(w, memory_format=torch.contiguous_format) for w in weights]
    room = [rows.new_empty(longest, w.shape[1]) for w in inner]
    hiddens = [rows.new_empty(longest, down.shape[2]) for _ in range(2)]
    for e, x, gx, g, *here in _runs(counts, rows, grad_rows, grad, *made):
        gate, up = _halves(here)
        changes = [r[: len(x)] for r in room]
        of_gate, of_up = _halves(changes)
        of_hidden, hidden = (h[: len(x)] for h in hiddens)
        torch.mm(g, down[e], out=of_hidden)
        ops.silu.out(gate, out=hidden)
        torch.mul(of_hidden, hidden, out=of_up)
        torch.mm(g.t(), hidden.mul_(up), out=of_weights[-1][e])
        ops.silu_backward.grad_input(of_hidden.mul_(up), gate, grad_input=of_gate)
        for change, of_w in zip(changes, of_weights):
            torch.mm(change.t(), x, out=of_w[e])
        torch.mm(changes[0], inner[0][e], out=gx)
        for change, w in zip(changes[1:], inner[1:]):
            gx.addmm_(change, w[e])
    grad_rows[sum(counts) :] = 0
    idle = [e for e, count in enumerate(counts) if not count]
    if idle:
        for of_w in of_weights:
            of_w[idle] = 0
    return [grad_rows, *of_weights]


def _runs(counts: Sequence[int], *of_rows: Tensor) -> Iterator[tuple[Any, ...]]:
    """(expert, its rows of each tensor) of every expert that has any."""
    used = sum(counts)
    parts = zip(*(t[:used].split(list(counts)) for t in of_rows))
    return ((e, *part) for e, part in enumerate(parts) if counts[e])


def _halves(inner: Sequence[Tensor]) -> Sequence[Tensor]:
    return inner if len(inner) == 2 else inner[0].chunk(2, dim=1)


@torch.library.custom_op("mri_ds::grouped_swiglu", mutates_args=())
def compiled_swiglu(rows: Tensor, counts: Tensor, weights: list[Tensor]) -> list[Tensor]:
    return _forward(rows, counts.tolist(), weights, keep=True)


@torch.library.custom_op("mri_ds::grouped_swiglu_backward", mutates_args=())
def _compiled_backward(grad: Tensor, rows: Tensor, counts: Tensor, made: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    return _backward(grad, rows, counts.tolist(), made, weights)


@compiled_swiglu.register_fake
def _(rows: Tensor, counts: Tensor, weights: list[Tensor]) -> list[Tensor]:
    return [torch.empty_like(rows), *(rows.new_empty(len(rows), w.shape[1]) for w in weights[:-1])]


@_compiled_backward.register_fake
def _(grad: Tensor, rows: Tensor, counts: Tensor, made: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    return [torch.empty_like(rows), *(torch.empty_like(w, memory_format=torch.contiguous_format) for w in weights)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    rows, counts, weights = inputs
    ctx.save_for_backward(rows, counts, *output[1:], *weights)


def _differentiate(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    rows, counts, *rest = ctx.saved_tensors
    num_inner = len(rest) // 2
    grad_rows, *of_weights = _compiled_backward(grads[0], rows, counts, rest[:num_inner], rest[num_inner:])
    return grad_rows, None, of_weights


compiled_swiglu.register_autograd(_differentiate, setup_context=_keep)
