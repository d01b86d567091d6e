"""The section "expert_parallel": how many ranks share one set of experts, and what the chosen back end must be told.

`training/expert_parallel.py` applies it: AutoEP replaces our blocks inside `deepspeed.initialize`, the native layer before it.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mri_ds.config import RunConfig
from mri_ds.errors import InputError

AUTOEP, NATIVE = "autoep", "native"
NATIVE_KEYS = ["capacity_factor", "eval_capacity_factor", "min_capacity"]
AUTOEP_KEYS = ["comm_backend", "combine_impl", "async_split_plan"]


def resolve_experts(section: Mapping[str, Any], config: RunConfig, world_size: int, where: str | Path) -> dict[str, Any]:
    """Raises InputError when the experts cannot be divided, and for a key that only the other back end has."""
    if not section.get("enabled", False) or not config.model.use_moe:
        return {"enabled": False}
    out = {"backend": AUTOEP, **section, "autoep_size": _size(section, config.model.num_experts, world_size, where)}
    if out["backend"] == NATIVE:
        _refuse(AUTOEP_KEYS, section, f'backend "{NATIVE}"', where)
        factor = out.setdefault("capacity_factor", None)
        return {"eval_capacity_factor": factor, "min_capacity": 4, **out}
    _refuse(NATIVE_KEYS, section, f'backend "{AUTOEP}", which drops no row', where)
    return {**out, **_autoep_layout(config.model.top_k)}


def for_autoep(section: Mapping[str, Any]) -> dict[str, Any] | None:
    """What DeepSpeed is told of it: AutoEP's keys, or nothing."""
    if not section["enabled"] or section["backend"] != AUTOEP:
        return None
    return {key: value for key, value in section.items() if key != "backend"}


def _size(section: Mapping[str, Any], num_experts: int, world_size: int, where: str | Path) -> int:
    size = section.get("autoep_size", "auto")
    if size == "auto":
        return math.gcd(num_experts, world_size)
    if not isinstance(size, int) or size < 1 or num_experts % size or world_size % size:
        raise InputError(
            f"expert_parallel.autoep_size = {size!r} must divide both the {num_experts} experts and the {world_size} ranks",
            where=where,
            fix=f'use a divisor of {math.gcd(num_experts, world_size)}, or "auto"',
        )
    return size


def _refuse(keys: list[str], section: Mapping[str, Any], backend: str, where: str | Path) -> None:
    for key in keys:
        if key in section:
            raise InputError(f"expert_parallel.{key} has no meaning with {backend}", where=where, fix="remove it")


def _autoep_layout(top_k: int) -> dict[str, Any]:
    """How AutoEP finds `nn.moe.MixtureOfExperts` inside an objective: facts of the code, not knobs."""
    return {
        "moe_layer_pattern": r"net\.encoder\.blocks\.\d+\.moe(\.routed)?",
        "router_pattern": "gate",
        "expert_pattern": "experts",
        "expert_w1": "gate_up_proj",
        "expert_w2": "down_proj",
        "expert_w3": None,
        "top_k": top_k,
        "score_func": "softmax",
        "score_apply": "post",
        "route_norm": True,
        "use_grouped_mm": False,
    }
