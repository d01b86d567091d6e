"""Half precision without ZeRO: what DeepSpeed's optimiser for it gets wrong, put right.

DeepSpeed 0.19 wraps AdamW in FP16_UnfusedOptimizer when fp16 or bf16 meets ZeRO stage 0. Three faults, each seen on one rank
against float32 and against stage 1, which has none of them:
- it allocates Adam's moments by a real step with zero gradients, so that the first true step is counted as the second, which
  makes it 26 % shorter, and every weight has decayed once;
- its gradient norm leaves the experts out, so that clipping differs from every other stage's;
- the float32 weights that it steps are not found by `safe_get_full_fp32_param`, so that an export would hold rounded ones.
"""

from typing import Any

import torch
import torch.distributed as dist


def mend_unfused(engine: Any) -> None:
    """Corrects a freshly built engine; does nothing for any other optimiser."""
    optimizer = engine.optimizer
    if type(optimizer).__name__ != "FP16_UnfusedOptimizer":
        return
    optimizer.refresh_fp32_params()  # as they were before the step with zero gradients
    for state in optimizer.optimizer.state.values():
        state["step"].zero_()
    for half, full in _pairs(optimizer):
        half.float32_weights = full
    optimizer.unscale_and_clip_grads = _WithExperts(optimizer)


class _WithExperts:
    """Bound `unscale_and_clip_grads` that is given the norm of the dense gradients and clips by that of all."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer, self.clip = optimizer, optimizer.unscale_and_clip_grads

    def __call__(self, dense_norm: Any, apply_scale: bool = True) -> Any:
        total = (float(dense_norm) ** 2 + _experts_square(self.optimizer)) ** 0.5
        self.optimizer._global_grad_norm = total
        return self.clip(total, apply_scale=apply_scale)


def _experts_square(optimizer: Any) -> float:
    """Sum over the ranks of an expert-parallel group of their experts' squared gradients."""
    from deepspeed.moe.utils import is_moe_param
    from deepspeed.utils import groups

    squares: dict[str, torch.Tensor] = {}
    for half, full in _pairs(optimizer):
        if is_moe_param(half) and full.grad is not None:
            square = full.grad.double().square().sum()
            squares[half.group_name] = squares.get(half.group_name, torch.zeros_like(square)) + square
    for name, square in sorted(squares.items()):
        group = groups._get_expert_parallel_group(name)
        if dist.get_world_size(group) > 1:
            dist.all_reduce(square, group=group)
    return float(sum(float(square) for square in squares.values()))


def _pairs(optimizer: Any) -> list[tuple[Any, Any]]:
    """(half-precision parameter, the float32 one that is stepped for it)."""
    return [
        pair
        for halves, fulls in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
        for pair in zip(halves, fulls, strict=True)
    ]
