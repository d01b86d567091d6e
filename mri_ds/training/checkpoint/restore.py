"""Everything of an engine that goes on, beside the weights: what a checkpoint tells of it, and loading it on any layout.

The same layout (ranks, expert parallelism, ZeRO stage, precision) loads DeepSpeed's shards as they are. Another one goes through
the universal form (universal.py): every rank takes its parts of the weights and of both moments from there, and the rest from
state.json and state.safetensors: Adam's step count, learning rates, loss scale, counters, the experts' selection biases.
The random numbers of a step are drawn from (seed, step, rank), and the data's position from the step: neither needs keeping.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mri_ds.training.checkpoint.parts as at
from mri_ds.errors import InputError
from mri_ds.training.checkpoint.universal import Universal
from mri_ds.training.native_moe import NativeMixture

COUNTERS = ("global_steps", "global_samples", "skipped_steps")
SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")  # what changes of a loss scaler


def layout(engine: Any) -> dict[str, Any]:
    """What must be equal for DeepSpeed to read its own shards again."""
    zero = engine.config.get("zero_optimization", {})
    experts = engine.config.get("expert_parallel", {})
    precision = [name for name in ("bf16", "fp16") if engine.config.get(name, {}).get("enabled")]
    wrapper = engine.optimizer
    return {
        "ranks": engine.world_size,
        "expert_parallel": experts.get("autoep_size", 0) if experts.get("enabled") else 0,
        "zero_stage": int(zero.get("stage", 0)),
        "precision": precision[0] if precision else "fp32",
        "optimizer": [type(wrapper).__name__, type(getattr(wrapper, "optimizer", wrapper)).__name__],
        "native_experts": any(isinstance(module, NativeMixture) for module in engine.module.modules()),
        "sub_group_size": zero.get("sub_group_size"),
        "offload": [zero.get(key, {}).get("device", "none") for key in ("offload_optimizer", "offload_param")],
    }


def describe(engine: Any) -> dict[str, Any]:
    """Plain values that a checkpoint keeps of the engine, see `restore`."""
    scheduler, scaler = engine.lr_scheduler, _scaler(engine)
    told: dict[str, Any] = {
        "layout": layout(engine),
        "adam_step": at.adam_step(engine),
        "lr_scheduler": scheduler.state_dict() if scheduler is not None else None,
        "loss_scaler": {name: getattr(scaler, name) for name in SCALER if hasattr(scaler, name)},
        **{name: int(getattr(engine, name)) for name in COUNTERS},
    }
    if told["layout"]["zero_stage"] == 0:
        names = {p: name for name, p in engine.module.named_parameters()}
        low = getattr(engine.optimizer, "fp16_groups", None) or [group["params"] for group in engine.optimizer.param_groups]
        told["parameter_names"] = [names[p] for group in low for p in group]
    return told


def buffers(engine: Any) -> dict[str, Tensor]:
    return {f"buffer/{name}": value.detach().cpu().clone() for name, value in at.own_buffers(engine.module).items()}


def check_convertible(told: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """Raises InputError where the saved layout cannot be brought to another one."""
    back = f"resume on {told['ranks']} ranks with ZeRO stage {told['zero_stage']}, as it was written"
    if "nvme" in told["offload"] or "nvme" in now["offload"]:
        raise InputError("optimiser states on NVMe cannot change their layout", where=where, fix=back)
    if told.get("native_experts") or now["native_experts"]:
        raise InputError('expert_parallel.backend "native" cannot change its layout', where=where, fix=back)
    if told["optimizer"][0] == "FP16_Optimizer" or now["optimizer"][0] == "FP16_Optimizer":
        raise InputError("ZeRO stage 0 with a fused optimiser in half precision cannot change its layout", where=where, fix=back)


@torch.no_grad()
def restore(engine: Any, universal: Universal, told: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Loads a universal checkpoint, `describe`'s values and `buffers` into an engine of any layout. Every rank must call it."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "checkpoint_event_prologue"):
        optimizer.checkpoint_event_prologue()
    at.prepare_moments(engine)
    for part in at.parts(engine):
        numel = getattr(part.parameter, "ds_numel", part.parameter.numel())
        for key in at.KEYS:
            at.write(part, key, universal.local(part.name, part.place, key, numel).float())
    at.set_adam_step(engine, told["adam_step"])
    at.weights_written(engine)
    if hasattr(optimizer, "checkpoint_event_epilogue"):
        optimizer.checkpoint_event_epilogue()
    for name, value in at.own_buffers(engine.module).items():
        value.copy_(tensors[f"buffer/{name}"])
    for name in COUNTERS:
        setattr(engine, name, told[name])
    engine.micro_steps = told["global_steps"] * engine.gradient_accumulation_steps()
    _restore_schedule(engine, told)


def _restore_schedule(engine: Any, told: Mapping[str, Any]) -> None:
    scheduler, scaler = engine.lr_scheduler, _scaler(engine)
    if scheduler is not None and told["lr_scheduler"] is not None:
        scheduler.load_state_dict(told["lr_scheduler"])
        groups = scheduler.optimizer.param_groups
        for group, lr in zip(groups, scheduler.get_lr(), strict=True):
            group["lr"] = lr
        scheduler._last_lr = [group["lr"] for group in groups]
    for name, value in told["loss_scaler"].items():
        if hasattr(scaler, name):
            setattr(scaler, name, value)


def _scaler(engine: Any) -> Any:
    """Who knows the loss scale: of ZeRO the scaler, of the wrapper without ZeRO its configuration; None in float32."""
    optimizer = engine.optimizer
    return getattr(optimizer, "loss_scaler", None) or getattr(optimizer, "loss_scale_config", None)
