"""The DeepSpeed JSON: read, checked, and every "auto" resolved before DeepSpeed sees it.

The JSON holds speed (precision, ZeRO, expert parallelism, recomputation, micro-batch, clipping). Science (optimiser, schedule,
global batch) comes from the YAML; a knob of one in the other is an error, so that nothing has two values.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mri_ds.config import RunConfig, nearest
from mri_ds.errors import InputError

# Top-level keys that DeepSpeed 0.19 reads (docs: deepspeed.ai/docs/config-json) and that mean something here.
KNOWN_KEYS = [
    "train_micro_batch_size_per_gpu", "gradient_clipping", "gradient_predivide_factor", "prescale_gradients",
    "communication_data_type", "fp16", "bf16", "torch_autocast", "data_types", "zero_optimization", "expert_parallel",
    "activation_checkpointing", "aio", "comms_logger", "flops_profiler", "wall_clock_breakdown", "memory_breakdown",
    "steps_per_print", "dump_state", "checkpoint", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer",
    "compile", "timers", "use_data_before_expert_parallelism", "disable_python_gc", "log_level",
]  # fmt: skip
SCIENCE_KEYS = {
    "optimizer": "training.lr, training.betas, training.weight_decay",
    "scheduler": "training.warmup_fraction, training.min_lr_ratio, training.steps",
    "train_batch_size": "training.global_batch",
    "gradient_accumulation_steps": "training.global_batch (accumulation follows from it)",
}
RECOMPUTE_LEVELS = ["none", "block"]
EXPERT_KEYS = ["enabled", "autoep_size", "use_grouped_mm", "comm_backend", "combine_impl", "async_split_plan"]


def read(path: Path) -> dict[str, Any]:
    """JSON file -> mapping. Raises InputError for a missing file, broken JSON, an unknown key or a knob of the YAML."""
    try:
        raw = json.loads(Path(path).read_text())
    except OSError as err:
        raise InputError(err.strerror or str(err), where=path, fix="give one of ds_configs/*.json") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as err:
        raise InputError(f"is not JSON: {err}", where=path, fix="correct the syntax") from None
    if not isinstance(raw, dict):
        raise InputError(f"holds a {type(raw).__name__}, not an object", where=path, fix="see ds_configs/small.json")
    _check_keys(raw, path)
    return raw


def resolve(raw: Mapping[str, Any], config: RunConfig, *, world_size: int, where: str | Path = "ds_config") -> dict[str, Any]:
    """Mapping with "auto" values and this run's science -> what `deepspeed.initialize` takes.

    Raises InputError when the global batch or the experts cannot be divided over `world_size` ranks.
    """
    out: dict[str, Any] = json.loads(json.dumps(raw))
    micro, accumulation = _batch(out, config, world_size, where)
    out |= {"train_micro_batch_size_per_gpu": micro, "gradient_accumulation_steps": accumulation}
    out["train_batch_size"] = config.training.global_batch
    out.setdefault("gradient_clipping", 1.0)  # DeepSpeed's own default is also 1.0; stated so that it is seen
    for name, supported in (("bf16", supports_bf16()), ("fp16", False)):
        section = out.setdefault(name, {"enabled": False})
        if section.get("enabled") == "auto":
            section["enabled"] = supported
    zero = out.setdefault("zero_optimization", {"stage": 0})
    for key in ("reduce_bucket_size", "stage3_prefetch_bucket_size"):
        if zero.get(key) == "auto":
            zero[key] = 8 * config.model.embed_dim * config.model.embed_dim
    out["expert_parallel"] = _expert_parallel(out.get("expert_parallel", {}), config, world_size, where)
    out["activation_checkpointing"] = {"level": "none"} | out.get("activation_checkpointing", {})
    out["optimizer"] = _optimizer(config)
    out["scheduler"] = _scheduler(config)
    out.setdefault("steps_per_print", 10**9)
    out["zero_allow_untested_optimizer"] = True
    return out


def supports_bf16() -> bool:
    """True where bf16 matrix products are fast: a GPU that has them, or a CPU with AMX or AVX-512 BF16 instructions.

    Measured on two cores, 2048^3 products: 6 x float32 with AMX, 2.5 x with AVX-512 BF16; without either bf16 is emulated.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def for_deepspeed(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """The resolved mapping less what is ours: the recomputation level, and a switched-off expert section."""
    out: dict[str, Any] = json.loads(json.dumps(resolved))
    out["activation_checkpointing"].pop("level")
    if not out["expert_parallel"].get("enabled"):
        out.pop("expert_parallel")
    return out


def _check_keys(raw: Mapping[str, Any], where: Path) -> None:
    for key, value in raw.items():
        if key in SCIENCE_KEYS:
            raise InputError(f"{key!r} is set in the JSON", where=where, fix=f"set {SCIENCE_KEYS[key]} in the YAML instead")
        if key not in KNOWN_KEYS:
            raise InputError(f"unknown key {key!r}", where=where, fix=nearest(key, KNOWN_KEYS))
        known = _section_keys(key)
        if known and not isinstance(value, dict):
            raise InputError(f"{key} = {value!r} is not an object", where=where, fix=f'write "{key}": {{...}}')
        for inner in value if known else ():
            if inner not in known:
                raise InputError(f"unknown key '{key}.{inner}'", where=where, fix=nearest(inner, known))
    level = raw.get("activation_checkpointing", {}).get("level", "none")
    if level not in RECOMPUTE_LEVELS:
        raise InputError(f"activation_checkpointing.level = {level!r}", where=where, fix=nearest(str(level), RECOMPUTE_LEVELS))


def _section_keys(section: str) -> list[str]:
    """Keys that DeepSpeed's own model of a section knows; empty where it has none."""
    if section == "expert_parallel":
        return EXPERT_KEYS
    if section == "activation_checkpointing":
        return ["level"]
    if section not in ("zero_optimization", "bf16", "fp16"):
        return []
    from mri_ds.training.distributed import prepare_environment

    prepare_environment()
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    model = {"zero_optimization": DeepSpeedZeroConfig, "bf16": DeepSpeedBF16Config, "fp16": DeepSpeedFP16Config}[section]
    return [name for key, field in model.model_fields.items() for name in (key, field.alias) if name]


def _batch(out: Mapping[str, Any], config: RunConfig, world_size: int, where: str | Path) -> tuple[int, int]:
    total = config.training.global_batch
    micro = out.get("train_micro_batch_size_per_gpu", "auto")
    if micro == "auto":
        micro = max(1, total // world_size)
    if not isinstance(micro, int) or micro < 1:
        raise InputError(f"train_micro_batch_size_per_gpu = {micro!r}", where=where, fix='give a whole number or "auto"')
    if total % (micro * world_size):
        raise InputError(
            f"training.global_batch = {total} cannot be divided over {world_size} ranks of micro-batch {micro}",
            where=where,
            fix=f"choose a multiple of {micro * world_size}",
        )
    return micro, total // (micro * world_size)


def _expert_parallel(section: Mapping[str, Any], config: RunConfig, world_size: int, where: str | Path) -> dict[str, Any]:
    if not section.get("enabled", False) or not config.model.use_moe:
        return {"enabled": False}
    experts, size = config.model.num_experts, section.get("autoep_size", "auto")
    if size == "auto":
        size = math.gcd(experts, world_size)
    if not isinstance(size, int) or size < 1 or experts % size or world_size % size:
        raise InputError(
            f"expert_parallel.autoep_size = {size!r} must divide both the {experts} experts and the {world_size} ranks",
            where=where,
            fix=f'use a divisor of {math.gcd(experts, world_size)}, or "auto"',
        )
    return {**section, "autoep_size": size, **_autoep_layout(config.model.top_k)}


def _autoep_layout(top_k: int) -> dict[str, Any]:
    """How AutoEP finds `nn.moe.MixtureOfExperts` inside an objective: facts of the code, not knobs."""
    return {
        "moe_layer_pattern": r"net\.encoder\.blocks\.\d+\.moe",
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


def _optimizer(config: RunConfig) -> dict[str, Any]:
    t = config.training
    # torch_adam: DeepSpeed's own CPU Adam would be compiled at first use; PyTorch's fused one is as fast
    params = {"lr": t.lr, "betas": list(t.betas), "weight_decay": t.weight_decay, "torch_adam": True, "fused": True}
    return {"type": "AdamW", "params": params}


def _scheduler(config: RunConfig) -> dict[str, Any]:
    t = config.training
    params = {
        "total_num_steps": t.steps,
        "warmup_num_steps": max(2, round(t.steps * t.warmup_fraction)),
        "warmup_type": "linear",
        "warmup_min_ratio": 0.01,
        "cos_min_ratio": t.min_lr_ratio,
    }
    return {"type": "WarmupCosineLR", "params": params}
