"""The JSON and the YAML: what DeepSpeed, AutoEP or the division over ranks would refuse after minutes in the queue.

Combinations with AutoEP are those that DeepSpeed 0.19 raises for (runtime/engine.py, module_inject/auto_ep_config.py).
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from mri_ds.config import SCALES, RunConfig, load_config
from mri_ds.errors import InputError
from mri_ds.training import ds_config
from mri_ds.training.doctor.finding import Finding, Request

BACKENDS = ["autoep", "native"]
CODES = {  # what ds_config says -> our code
    "unknown key": "unknown-key",
    "is set in the JSON": "science-in-json",
    "is not JSON": "json-syntax",
    "is not an object": "json-type",
    "not an object": "json-type",
    "activation_checkpointing.level": "recompute-level",
    "cannot be divided over": "batch-indivisible",
    "must divide both": "experts-indivisible",
    "train_micro_batch_size_per_gpu": "micro-batch",
}


def check_config(request: Request) -> tuple[list[Finding], RunConfig | None, dict[str, Any] | None]:
    """Findings; the science, where it can be read; the JSON without "auto", where it can be resolved."""
    where = request.ds_config
    scale = request.scale or (where.stem if where.stem in SCALES else None)
    try:
        config = load_config(request.config, overrides=request.overrides, scale=scale)
    except InputError as err:
        return [Finding("science", *_split(err))], None, None
    raw, findings = _read(request)
    if raw is None:
        return findings, config, None
    findings += [*_combinations(raw, str(where)), *_offload(raw, str(where))]
    if findings:
        return findings, config, None
    try:
        ds_config.check(raw, where=where)
        return [], config, ds_config.resolve(raw, config, world_size=request.ranks, where=where)
    except InputError as err:
        return [_named(err)], config, None


def _read(request: Request) -> tuple[dict[str, Any] | None, list[Finding]]:
    where = str(request.ds_config)
    try:
        raw = json.loads(request.ds_config.read_text())
    except OSError as err:
        return None, [Finding("json-missing", err.strerror or str(err), "give one of ds_configs/*.json", where)]
    except (json.JSONDecodeError, UnicodeDecodeError) as err:
        return None, [Finding("json-syntax", f"is not JSON: {err}", "correct the syntax", where)]
    if not isinstance(raw, dict):
        return None, [Finding("json-type", f"holds a {type(raw).__name__}, not an object", "see ds_configs/small.json", where)]
    return raw, []


def _combinations(raw: Mapping[str, Any], where: str) -> list[Finding]:
    zero, experts = _section(raw, "zero_optimization"), _section(raw, "expert_parallel")
    stage, backend = zero.get("stage", 0), experts.get("backend", "autoep")
    is_on = bool(experts.get("enabled"))
    autoep = is_on and backend == "autoep"
    rules = [
        (is_on and backend not in BACKENDS, "moe-backend", f"expert_parallel.backend = {backend!r}",
         f"use one of {', '.join(BACKENDS)}"),
        (is_on and backend == "native" and stage == 3, "native-moe-zero3", "deepspeed.moe.layer.MoE cannot be sharded by ZeRO-3",
         'use "backend": "autoep", or zero_optimization.stage 0, 1 or 2'),
        (is_on and backend == "autoep" and "capacity_factor" in experts, "native-key-with-autoep",
         "capacity_factor is of the native back end; AutoEP drops no token",
         'use "backend": "native", or leave them out'),
        (autoep and stage == 3 and raw.get("sequence_parallel_size", 1) > 1, "autoep-sequence-parallel",
         "AutoEP under ZeRO-3 cannot be combined with sequence parallelism", "leave sequence_parallel_size out, or use stage 2"),
        (autoep and _size(raw, "tensor_parallel") > 1, "autoep-tensor-parallel", "AutoEP cannot be combined with AutoTP here",
         "leave tensor_parallel out"),
        (autoep and zero.get("mics_shard_size", -1) > 0, "autoep-mics", "AutoEP cannot be combined with MiCS",
         "leave mics_shard_size out"),
        (autoep and zero.get("zero_hpz_partition_size", 1) > 1, "autoep-hpz", "AutoEP cannot be combined with hpZeRO",
         "leave zero_hpz_partition_size out"),
        (autoep and bool(zero.get("zero_quantized_gradients")), "autoep-quantized",
         "AutoEP cannot be combined with quantised gradients", "leave zero_quantized_gradients out"),
        ("load_balance_coeff" in experts, "autoep-load-balance", "AutoEP refuses load_balance_coeff",
         "set training.balance_rate in the YAML instead"),
        (_section(raw, "bf16").get("enabled") is True and bool(_section(raw, "fp16").get("enabled")), "two-precisions",
         "bf16 and fp16 are both enabled", "enable one of them"),
        (stage not in (0, 1, 2, 3), "zero-stage", f"zero_optimization.stage = {stage!r}", "use 0, 1, 2 or 3"),
    ]  # fmt: skip
    return [Finding(code, reason, fix, where) for is_bad, code, reason, fix in rules if is_bad]


def _offload(raw: Mapping[str, Any], where: str) -> list[Finding]:
    zero, out = _section(raw, "zero_optimization"), []
    for name, least in (("offload_optimizer", 1), ("offload_param", 3)):
        section = _section(zero, name)
        target = section.get("device", "none")
        if target in ("none", None):
            continue
        if zero.get("stage", 0) < least:
            out.append(Finding("offload-stage", f"{name} needs ZeRO-{least} or more", f"set stage {max(least, 3)}", where))
        if target == "nvme" and not section.get("nvme_path"):
            out.append(
                Finding("nvme-path", f"{name} to NVMe has no nvme_path", "name a folder on a local disk of every node", where)
            )
    return out


def _named(err: InputError) -> Finding:
    """What ds_config.limits refuses has a code of its own, in brackets at its end."""
    reason, fix = _split(err)
    if own := re.search(r" \[([a-z0-9-]+)\]$", reason):
        return Finding(own[1], reason[: own.start()], fix)
    return Finding(next((code for words, code in CODES.items() if words in reason), "json"), reason, fix)


def _split(err: InputError) -> tuple[str, str]:
    """An InputError's text -> (reason, fix)."""
    reason, _, fix = str(err).partition(" Fix: ")
    return reason.rstrip("."), fix.rstrip(".") or "correct it"


def _section(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = raw.get(name, {})
    return value if isinstance(value, dict) else {}


def _size(raw: Mapping[str, Any], name: str) -> int:
    return int(_section(raw, name).get("autotp_size", 0))
