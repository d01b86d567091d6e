"""Expert parallelism from outside: what happens to `nn.moe.MixtureOfExperts` once its experts are spread over ranks.

Two back ends, chosen here. AutoEP replaces each block inside `deepspeed.initialize`, and our expert product then takes its place;
DeepSpeed's own MoE layer replaces it before (native_moe.py). This file translates parameter names of either back to ours.
Axes: E experts, E/R of them on each of the R ranks of an expert-parallel group, F expert width, D width.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from mri_ds.nn.grouped import grouped_swiglu
from mri_ds.nn.moe import MixtureOfExperts
from mri_ds.training.expert_exchange import replace_travel
from mri_ds.training.native_moe import NativeMixture, replace_mixtures


def spread_experts(objective: nn.Module, section: Mapping[str, Any]) -> None:
    """What a resolved "expert_parallel" wants done before `deepspeed.initialize`; AutoEP comes to act inside it."""
    if section["enabled"] and section["backend"] == "native":
        replace_mixtures(objective, section)


def moe_layers(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """(name, layer) of every mixture of experts, AutoEP's, DeepSpeed's or our own, in order of depth."""
    for name, layer in module.named_modules():
        if isinstance(layer, MixtureOfExperts | NativeMixture) or getattr(layer, "_is_autoep_layer", False):
            yield name, layer


def install_expert_product(module: nn.Module) -> int:
    """Gives AutoEP's expert modules `nn.grouped.grouped_swiglu`, and its layers our way to them and back; returns how many.

    Its own loop sends a gradient of the whole weight stack back for every expert; at `small` on CPU that was 220 ms forward
    and backward against 57 ms (8,192 rows, bf16, one core). Weights, names and results stay AutoEP's.
    Also puts the selection bias back to float32, which a half-precision cast rounds to steps larger than its updates.
    """
    count = 0
    for _, layer in moe_layers(module):
        gate = router_of(layer)
        gate.e_score_correction_bias.data = gate.e_score_correction_bias.data.float()
        if not isinstance(layer, MixtureOfExperts | NativeMixture):
            layer.experts.forward = _ExpertProduct(layer.experts)
            replace_travel(layer)
            count += 1
    return count


class _ExpertProduct:
    """Bound forward of AutoEP's GroupedExperts: w1 gate (E/R, F, D), w3 up (E/R, F, D), w2 down (E/R, D, F)."""

    def __init__(self, experts: nn.Module) -> None:
        self.experts: Any = experts

    def __call__(self, rows: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        return grouped_swiglu(rows, counts, self.experts.w1, self.experts.w3, self.experts.w2)


def own_state(module: nn.Module, full: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """This rank's full tensors under the back end's names -> all experts under our names. Every rank must call it.

    `full` maps parameter and buffer names of `module` to unsharded tensors, experts still E/R per rank.
    """
    out = dict(full)
    for name, layer in moe_layers(module):
        if isinstance(layer, MixtureOfExperts):
            continue
        if isinstance(layer, NativeMixture):
            local = {key.removeprefix(f"{name}."): out.pop(key) for key in list(out) if key.startswith(f"{name}.native.")}
            for key, value in layer.own_state(local).items():
                out[f"{name}.{key}"] = _all_experts(value, layer) if key.startswith("experts.") else value
            continue
        out[f"{name}.gate.weight"] = out.pop(f"{name}.router.gate.weight")
        out[f"{name}.gate.e_score_correction_bias"] = out.pop(f"{name}.router.e_score_correction_bias")
        w1, w2, w3 = (_all_experts(out.pop(f"{name}.experts.{w}"), layer) for w in ("w1", "w2", "w3"))
        out[f"{name}.experts.gate_up_proj"] = torch.cat([w1, w3], dim=1)
        out[f"{name}.experts.down_proj"] = w2
    return out


def _all_experts(local: torch.Tensor, layer: Any) -> torch.Tensor:
    """(E/R, ...) of each rank of the layer's expert-parallel group -> (E, ...) in order."""
    if layer.ep_size == 1:
        return local
    parts = [torch.empty_like(local) for _ in range(layer.ep_size)]
    dist.all_gather(parts, local.contiguous(), group=layer.ep_group)
    return torch.cat(parts)


def router_of(layer: Any) -> Any:
    """What chooses experts: returns (weights (T, K), experts (T, K), ...), holds `e_score_correction_bias` (E,)."""
    return layer.gate if isinstance(layer, MixtureOfExperts) else layer.router
