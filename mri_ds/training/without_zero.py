"""What DeepSpeed 0.19 does wrong without ZeRO (stage 0), put right: gradient norm, clipping, and the first step of Adam.

- float32: it averages the norms of the ranks as if all held the same parameters, but with expert parallelism each holds other
  experts, so that clipping depends on where experts live (DeepSpeed issue 8475); and it tells the norm to nobody (issue 7255).
- half precision: the norm leaves the experts out (pull request 8613) and is told times the loss scale (8588); and its optimiser
  takes a step with gradients of 0 when it is made, so that Adam starts at step 2, whose bias corrections make the first
  updates a quarter too small (the sharded stages were cured of that by pull request 5104).
With ZeRO 1 to 3 all of this is right; `mri-ds parity` checks both.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def correct_without_zero(engine: Any) -> None:
    """Takes norm and clipping over from an engine of stage 0, right before its optimiser steps; others are left as they are."""
    if engine.zero_optimization():
        return
    wrapper = engine.optimizer
    optimizer = getattr(wrapper, "optimizer", wrapper)  # half precision: torch's own inside, on float32 copies
    engine.clip_fp32_gradients = lambda: None
    if optimizer is not wrapper:
        wrapper.clip_grad = 0.0  # it still divides by the loss scale
        _forget_first_step(wrapper)
    limit = engine.gradient_clipping()

    def clip(*_: Any) -> None:
        norm = global_norm(optimizer.param_groups)
        engine._global_grad_norm = wrapper._global_grad_norm = float(norm)
        if limit:
            scale = (limit / (norm + 1e-6)).clamp(max=1)
            torch._foreach_mul_(
                [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None], scale
            )

    optimizer.register_step_pre_hook(clip)


@torch.no_grad()
def global_norm(groups: list[dict[str, Any]]) -> Tensor:
    """2-norm of the gradients of an optimiser's groups, every expert counted once. All ranks call it and get the same."""
    square = torch.zeros(())
    for group in groups:
        grads = [p.grad for p in group["params"] if p.grad is not None]
        own = nn.utils.get_total_norm(grads).square()
        if group.get("moe", False):  # after DeepSpeed has put experts into groups of their own
            from deepspeed.utils import groups as parallel

            dist.all_reduce(own, group=parallel._get_expert_parallel_group(group["name"]))
        square = square.to(own.device) + own
    return square.sqrt()


@torch.no_grad()
def _forget_first_step(wrapper: Any) -> None:
    """Back to before the step that was taken at construction: no optimiser state, copies equal to the weights."""
    wrapper.optimizer.state.clear()
    for copies, weights in zip(wrapper.fp32_groups, wrapper.fp16_groups, strict=True):
        for copy, weight in zip(copies, weights, strict=True):
            copy.copy_(weight)
