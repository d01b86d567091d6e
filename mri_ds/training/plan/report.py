"""The whole plan as plain data, and what would go wrong in words."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mri_ds.config import RunConfig
from mri_ds.errors import InputError
from mri_ds.training import ds_config
from mri_ds.training.devices import Device
from mri_ds.training.plan.cpu import device
from mri_ds.training.plan.layout import Layout, layout_of
from mri_ds.training.plan.parameters import count
from mri_ds.training.plan.suggestion import ROOM, Outcome, best_layout, best_micro_batch, fits, outcome
from mri_ds.training.plan.time import seconds_of
from mri_ds.training.plan.trace import at_micro_batch

HALF = 0.5  # of a step that is not work: there a larger machine buys little
HOST_PER_RANK = 128e9  # memory of a node's host for each rank: 1 to 2 TB beside eight GPUs


def make_plan(
    config: RunConfig,
    ds_config_path: Path,
    *,
    nodes: int,
    slots: int,
    device_name: str,
    global_batch: int | None = None,
    search: bool = True,
) -> dict[str, Any]:
    """What `mri-ds plan` tells. global_batch None: as many subjects as the ranks have room for, without accumulation.

    Raises InputError as ds_config.resolve: for experts or a global batch that the ranks cannot divide.
    """
    unit, ranks = device(device_name), nodes * slots
    raw = ds_config.read(ds_config_path)
    micro = raw.get("train_micro_batch_size_per_gpu", "auto")
    config = config.model_copy(deep=True)
    config.training.global_batch = global_batch or ranks * (1 if micro == "auto" else micro)
    layout = _layout(raw, config, unit, nodes=nodes, slots=slots, where=ds_config_path)
    one = best_micro_batch(config, layout, unit, global_batch=global_batch) if micro == "auto" else outcome(config, layout, unit)
    better = best_layout(config, one.layout, unit, global_batch=global_batch) if search else None
    parameters = count(config)
    return {
        "scale": config.model.scale,
        "device": device_name,
        "patch": list(config.data.patch),
        "parameters": {"total": parameters.total, "experts": sum(parameters.experts)},
        **describe(one, unit),
        "activation_bytes": {
            level: at_micro_batch(one.layout.micro_batch, config, precision=layout.precision, recompute=level).peak_bytes
            for level in dict.fromkeys(["none", "block", layout.recompute])  # a trace of each takes seconds
        },
        "suggestion": None if better is None else describe(better, unit),
        "breaks_first": breaks_first(one, unit),
    }


def _layout(raw: dict[str, Any], config: RunConfig, unit: Device, *, nodes: int, slots: int, where: Path) -> Layout:
    """As the JSON says; what it leaves to the machine is decided by the one planned for, which need not be this one."""
    precision = None if unit.name == "cpu" else _precision(raw, unit, where)
    if precision:
        raw |= {"bf16": {"enabled": False}, "fp16": {"enabled": False}}  # which this machine need not have
    found = layout_of(ds_config.resolve(raw, config, world_size=nodes * slots, where=where), nodes=nodes, slots=slots)
    return replace(found, precision=precision) if precision else found


def _precision(raw: dict[str, Any], unit: Device, where: Path) -> str:
    bf16, fp16 = (raw.get(name, {}).get("enabled", False) for name in ("bf16", "fp16"))
    if bf16 is True and not unit.bf16:
        raise InputError(f"bf16.enabled = true, but {unit.name} has no bf16 products", where=where, fix="use fp16.enabled=true")
    if bf16 is True and fp16 is True:
        raise InputError("bf16.enabled and fp16.enabled are both true", where=where, fix="switch one off")
    if fp16 is True or (bf16 == fp16 == "auto" and not unit.bf16):
        return "fp16"
    return "bf16" if bf16 and unit.bf16 else "fp32"


def describe(one: Outcome, unit: Device) -> dict[str, Any]:
    time = {name: round(value, 6) for name, value in asdict(one.time).items()}
    return {
        "layout": one.layout.describe(),
        "memory": {**asdict(one.memory), "peak": one.memory.peak, "device": int(unit.memory), "fits": fits(one, unit)},
        "communication": [{**asdict(t), "seconds": round(seconds_of(t, unit), 6)} for t in one.traffic],
        "time": {**time, "step": round(one.time.total, 6)},
        "samples_per_s": round(one.samples_per_s, 3),
        "global_batch": one.layout.ranks * one.layout.micro_batch * one.layout.accumulation,
    }


def breaks_first(one: Outcome, unit: Device) -> str:
    """The scarcest thing, in words: what would have to give way when the run grows."""
    held, waits, launches = one.memory, 1 - one.time.efficiency, one.time.launches / one.time.total
    start = f"the host's memory at the start: each rank builds all of it, {held.host_start / 1e9:.1f} GB"
    shares = {
        f"device memory: {held.peak / 1e9:.1f} of {unit.memory / 1e9:.0f} GB a rank": held.peak / (ROOM * unit.memory),
        start: held.host_start / HOST_PER_RANK,
        f"communication: {waits:.0%} of the step": waits / HALF,
        f"launching operators from Python: {launches:.0%} of the step": launches / HALF,
    }
    return max(shares, key=lambda name: shares[name])
