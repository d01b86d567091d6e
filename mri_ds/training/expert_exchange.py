"""How rows travel through AutoEP's layer: to the ranks that hold their experts and back, computed as nn/moe.py computes them.

Axes: B batch, S tokens of a subject, N = B * S rows, K experts per token, D width, R ranks of an expert-parallel group,
E experts, E/R of them on each rank.
AutoEP's own way, on a CPU, fills runs up in a Python loop over experts, copies all rows four times with indices whose gradient
is added element by element, and weighs in one step of many copies. Router, exchange of rows, weights and names stay AutoEP's.
"""

from typing import Any

import torch
from torch import Tensor

from mri_ds.nn.moe import through_experts, weigh


def replace_travel(layer: Any) -> None:
    """Gives an AutoEP layer the forward pass below, where it was asked for nothing that this has not."""
    plain = {"folding_group_handles": None, "comm_backend": "comm", "combine_impl": "weighted_sum", "score_apply": "post"}
    if all(getattr(layer, name) == value for name, value in plain.items()) and not layer.async_split_plan:
        layer._forward = _Travel(layer)


class _Travel:
    """Bound `_forward` of AutoEPMoELayer: (B, S, D) -> (B, S, D)."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def __call__(self, hidden_states: Tensor) -> Tensor:
        layer = self.layer
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        weights, chosen, counts = layer.router(rows, layer.expert_bias)
        with torch.no_grad():
            layer.tokens_per_expert.add_(counts)
        if layer.ep_size == 1:
            out = through_experts(rows, chosen, layer.experts, num_experts=layer.num_experts)
        else:
            out = self._elsewhere(rows, chosen, counts)
        out = weigh(out, weights).view_as(hidden_states)
        return layer._finalize_output(out, rows, hidden_states, rows.shape[1])  # type: ignore[no-any-return]

    def _elsewhere(self, rows: Tensor, chosen: Tensor, counts: Tensor) -> Tensor:
        """Rows (N, D) through experts (N, K) of all ranks -> (N, K, D)."""
        from deepspeed.module_inject.auto_ep_layer import _AllToAllV, compute_split_plan

        layer = self.layer
        plan = compute_split_plan(
            selected_experts=chosen,
            num_experts=layer.num_experts,
            ep_size=layer.ep_size,
            num_local_experts=layer.num_local_experts,
            ep_group=layer.ep_group,
            num_tokens_per_expert=counts,
        )
        order = chosen.reshape(-1).argsort(stable=True)
        sent = rows.index_select(0, order // chosen.shape[1])
        come = _AllToAllV.apply(layer.ep_group, sent, plan.input_splits, plan.output_splits)
        by_source = plan.local_counts_by_source  # (R, E/R): what comes from one rank is sorted by expert
        expert = torch.arange(by_source.shape[1], device=rows.device).repeat(by_source.shape[0])
        expert = expert.repeat_interleave(by_source.flatten().long())[:, None]
        made = through_experts(come, expert, layer.experts, num_experts=layer.num_local_experts)[:, 0]
        back = _AllToAllV.apply(layer.ep_group, made, plan.output_splits, plan.input_splits)
        place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        return back.index_select(0, place).view(*chosen.shape, rows.shape[1])  # type: ignore[no-any-return]
