"""DeepSpeed's own MoE layer as a back end: what stands in for `nn.moe.MixtureOfExperts` with ZeRO 0, 1 and 2.

The layer gives every expert room for `capacity` rows, exchanges the full room between ranks, and leaves out rows beyond it. Its
gate is replaced by one that routes as `nn.moe.Gate` does (weights of the chosen experts sum to one, the selection bias chooses
but does not weigh), so that with room for all rows it computes what AutoEP and a single device compute.
Axes: S tokens of a rank, E experts, K experts per token, C capacity, F expert width, D width.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from mri_ds.nn.moe import MixtureOfExperts


def replace_mixtures(module: nn.Module, section: Mapping[str, Any]) -> int:
    """Puts a NativeMixture in the place of every MixtureOfExperts below `module`; returns how many. Every rank must call it.

    `section` is a resolved "expert_parallel". Weights stay what they were: each rank keeps its own share of the experts.
    """
    found = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, MixtureOfExperts)]
    for name, layer in found:
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, NativeMixture(layer, section))
    return len(found)


class NativeMixture(nn.Module):
    """(B, N, D) -> (B, N, D), by a `deepspeed.moe.layer.MoE` that holds the weights of `source`."""

    def __init__(self, source: MixtureOfExperts, section: Mapping[str, Any]) -> None:
        super().__init__()
        from deepspeed.moe.layer import MoE
        from deepspeed.utils import groups

        num_experts, dim, hidden = source.experts.down_proj.shape
        size = section["autoep_size"]
        self.top_k, self.ep_size, self.ep_group_name = source.top_k, size, f"ep_size_{size}"
        if self.ep_group_name not in groups._get_expert_parallel_group_dict():
            groups._create_expert_and_data_parallel(size)
        limited = section["capacity_factor"] is not None
        self.native = MoE(
            dim,
            expert=Expert(dim, hidden),
            num_experts=num_experts,
            ep_size=size,
            k=source.top_k,
            capacity_factor=section["capacity_factor"] or 1.0,
            eval_capacity_factor=section["eval_capacity_factor"] or 1.0,
            min_capacity=section["min_capacity"],
            drop_tokens=limited,
        )
        gate = self.native.deepspeed_moe.gate
        gate.wg = source.gate
        self.num_experts, self.num_local_experts = num_experts, num_experts // size
        self.first_expert = dist.get_rank(self.ep_group) * self.num_local_experts
        for i, expert in enumerate(self.native.deepspeed_moe.experts.deepspeed_experts):
            expert.gate_up_proj.data.copy_(source.experts.gate_up_proj.data[self.first_expert + i])
            expert.down_proj.data.copy_(source.experts.down_proj.data[self.first_expert + i])
        gate.forward = _Places(gate, self)

    @property
    def ep_group(self) -> Any:
        from deepspeed.utils import groups

        return groups._get_expert_parallel_group(self.ep_group_name)

    @property
    def router(self) -> Any:
        """Our own Gate inside DeepSpeed's, under the name that AutoEP's layer has for its router."""
        return self.native.deepspeed_moe.gate.wg

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.native(tokens)[0]  # type: ignore[no-any-return]

    def own_state(self, local: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """This layer's tensors by DeepSpeed's names -> by MixtureOfExperts' names, this rank's experts (E/R, ...) stacked."""
        inside = "native.deepspeed_moe."
        count = self.num_local_experts
        stacks = {
            name: torch.stack([local[f"{inside}experts.deepspeed_experts.{i}.{name}"] for i in range(count)])
            for name in ("gate_up_proj", "down_proj")
        }
        return {
            **{key.removeprefix(inside).replace("gate.wg.", "gate."): local[key] for key in local if ".gate." in key},
            "experts.gate_up_proj": stacks["gate_up_proj"],
            "experts.down_proj": stacks["down_proj"],
        }


class Expert(nn.Module):
    """One SwiGLU network, (..., D) -> (..., D); gate_up_proj (2F, D) holds the gate rows then the up rows, down_proj (D, F)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(2 * hidden, dim))
        self.down_proj = nn.Parameter(torch.empty(dim, hidden))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        gate, up = F.linear(rows, self.gate_up_proj).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, self.down_proj)


class _Places:
    """Bound forward of DeepSpeed's TopKGate, sparse form: (loss, C, E, expert, place and weight (K, S), rows per expert (E,)).

    A row without a place has expert -1; its weight goes to the token's other experts. No auxiliary loss: load is balanced by the
    selection bias (training/expert_load.py).
    """

    def __init__(self, gate: Any, layer: NativeMixture) -> None:
        self.gate = gate
        self.layer = [layer]  # in a list, so that the module tree stays a tree

    def __call__(self, rows: torch.Tensor, *_: Any) -> tuple[Any, ...]:
        gate = self.gate
        weights, chosen, _ = gate.wg(rows, top_k=gate.k)  # (S, K) both
        num_experts = gate.wg.out_features
        shares = weights.new_zeros(rows.shape[0], num_experts).scatter(1, chosen, weights.detach())  # (S, E)
        is_chosen = torch.zeros_like(shares, dtype=torch.bool).scatter_(1, chosen, True)
        counts = is_chosen.sum(dim=0)
        capacity = self._capacity(counts, rows.shape[0])
        if gate.drop_tokens:
            kept = _best(shares, is_chosen, capacity)
            is_kept = kept.gather(1, chosen)
            weights = weights * is_kept
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        else:
            kept, is_kept = is_chosen, torch.ones_like(chosen, dtype=torch.bool)
        places = (kept.long().cumsum(dim=0) - 1).gather(1, chosen) * is_kept  # in the expert's room
        routes = (torch.where(is_kept, chosen, -1).int(), places.int(), weights)
        return weights.new_zeros(()), capacity, num_experts, *(each.t().contiguous() for each in routes), counts

    def _capacity(self, counts: torch.Tensor, num_tokens: int) -> int:
        """Rows that every expert has room for; the same on all ranks, which exchange rooms of one size."""
        gate = self.gate
        if gate.drop_tokens:
            factor = gate.capacity_factor if gate.training else gate.eval_capacity_factor
            return max(gate.min_capacity, math.ceil(num_tokens * gate.k / counts.shape[0] * factor))
        most = counts.max()
        if self.layer[0].ep_size > 1:
            dist.all_reduce(most, op=dist.ReduceOp.MAX, group=self.layer[0].ep_group)
        return max(1, int(most))


def _best(shares: torch.Tensor, is_chosen: torch.Tensor, capacity: int) -> torch.Tensor:
    """Of the rows that chose an expert, the `capacity` to whom it matters most: (S, E) bool."""
    masked = shares.masked_fill(~is_chosen, -1)
    best = masked.topk(min(capacity, masked.shape[0]), dim=0, sorted=False).indices
    return torch.zeros_like(is_chosen).scatter_(0, best, True) & is_chosen
