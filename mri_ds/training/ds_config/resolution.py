"""From a mapping with "auto" values and a run's science to what `deepspeed.initialize` takes.

D width, F expert width, E experts: of the network that is trained.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mri_ds.config import ModelConfig, RunConfig
from mri_ds.errors import InputError
from mri_ds.training.ds_config.experts import for_autoep, resolve_experts
from mri_ds.training.ds_config.limits import refuse
from mri_ds.training.ds_config.precision import precision

LEAST_BUCKET = 2**20  # elements; smaller messages cost their latency


def resolve(raw: Mapping[str, Any], config: RunConfig, *, world_size: int, where: str | Path = "ds_config") -> dict[str, Any]:
    """Mapping with "auto" values and this run's science -> what `deepspeed.initialize` takes, and what is ours.

    Raises InputError when the global batch or the experts cannot be divided over `world_size` ranks, and for what cannot work
    together or not on this machine (see limits.py).
    """
    out: dict[str, Any] = json.loads(json.dumps(raw))
    micro, accumulation = _batch(out, config, world_size, where)
    out |= {"train_micro_batch_size_per_gpu": micro, "gradient_accumulation_steps": accumulation}
    out["train_batch_size"] = config.training.global_batch
    out.setdefault("gradient_clipping", 1.0)  # DeepSpeed's own default is also 1.0; stated so that it is seen
    for name, is_on in precision(out.setdefault("bf16", {}), out.setdefault("fp16", {})).items():
        out[name]["enabled"] = is_on
    out["expert_parallel"] = resolve_experts(out.get("expert_parallel", {}), config, world_size, where)
    zero = out.setdefault("zero_optimization", {"stage": 0})
    for key, value in _buckets(config.model, out["expert_parallel"].get("autoep_size", 1)).items():
        if zero.get(key) == "auto":
            zero[key] = value
    if zero.get("overlap_comm") == "auto":
        zero["overlap_comm"] = torch.cuda.is_available()  # a CPU has no second stream to overlap on
    out["activation_checkpointing"] = {"level": "none"} | out.get("activation_checkpointing", {})
    out["optimizer"] = _optimizer(config)
    out["scheduler"] = _scheduler(config)
    out.setdefault("steps_per_print", 10**9)
    out["zero_allow_untested_optimizer"] = True
    out["zero_force_ds_cpu_optimizer"] = False  # offloaded moments are stepped by PyTorch's fused AdamW on the CPU
    refuse(out, where=where)
    return out


def for_deepspeed(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """The resolved mapping less what is ours: recomputation level, compiled blocks, experts that AutoEP does not touch."""
    out: dict[str, Any] = json.loads(json.dumps(resolved))
    out["activation_checkpointing"].pop("level")
    out.get("compile", {}).pop("blocks", None)
    section = for_autoep(out.pop("expert_parallel"))
    return out if section is None else out | {"expert_parallel": section}


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


def _buckets(model: ModelConfig, expert_parallel: int) -> dict[str, int]:
    """Elements of one message: one block's gradients are reduced, and the next block's dense weights fetched, at once."""
    dense = 4 * model.embed_dim**2  # queries, keys, values, output
    experts_here = model.num_experts // expert_parallel if model.use_moe else model.top_k
    block = dense + experts_here * 3 * model.embed_dim * model.expert_hidden
    return {"reduce_bucket_size": max(LEAST_BUCKET, block), "stage3_prefetch_bucket_size": 2 * dense}


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
