"""What cannot work together, or not on this machine, said before the launch and not an hour after it.

Each rule has a code, a reason and a way out, and belongs to DeepSpeed 0.19 unless it says otherwise.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mri_ds.errors import InputError
from mri_ds.training.ds_config.experts import AUTOEP, NATIVE
from mri_ds.training.ds_config.precision import supports_fp16

Resolved = Mapping[str, Any]


class Limit(NamedTuple):
    """One thing that cannot be: `code` to search for, what it is and why, what to do instead."""

    code: str
    what: str
    fix: str


def refuse(resolved: Resolved, *, where: str | Path) -> None:
    """Raises InputError for the first limit that a resolved JSON meets."""
    for limit in limits(resolved):
        raise InputError(f"{limit.what} [{limit.code}]", where=where, fix=limit.fix)


def limits(resolved: Resolved) -> Iterator[Limit]:
    """Every limit that a resolved JSON meets on this machine."""
    yield from _of_precision(resolved)
    yield from _of_experts(resolved)
    yield from _of_offload(resolved)
    yield from _of_nvme(resolved)
    if resolved.get("compile", {}).get("blocks") and _stage(resolved) == 3:
        yield Limit(
            "compile-zero3",
            "compile.blocks with zero_optimization.stage = 3: ZeRO-3 fetches weights between the modules of a block",
            "use zero_optimization.stage=2 or less, or compile.blocks=false",
        )


def _of_precision(resolved: Resolved) -> Iterator[Limit]:
    bf16, fp16 = resolved["bf16"]["enabled"], resolved["fp16"]["enabled"]
    if bf16 and fp16:
        yield Limit("two-precisions", "bf16.enabled and fp16.enabled are both true", "switch one off")
    if fp16 and not supports_fp16():
        yield Limit(
            "no-fp16",
            "fp16.enabled = true, but this machine has no GPU and its CPU no fp16 products",
            "use bf16.enabled=true, or float32 with both off",
        )


def _of_experts(resolved: Resolved) -> Iterator[Limit]:
    experts, zero = resolved["expert_parallel"], resolved["zero_optimization"]
    if not experts["enabled"]:
        return
    if experts["backend"] == NATIVE and _stage(resolved) == 3:
        yield Limit(
            "native-zero3",
            'expert_parallel.backend = "native" with zero_optimization.stage = 3: ZeRO-3 shards weights over all ranks, and '
            "DeepSpeed's MoE layer keeps its experts whole",
            'use zero_optimization.stage=2, or backend "autoep"',
        )
    if experts["backend"] == AUTOEP and _stage(resolved) == 3:
        for key, default in (("zero_hpz_partition_size", 1), ("zero_quantized_gradients", False)):
            if zero.get(key, default) != default:
                yield Limit("autoep-zero3", f"zero_optimization.{key} with ZeRO-3 and AutoEP is not supported", f"remove {key}")


def _of_offload(resolved: Resolved) -> Iterator[Limit]:
    zero, stage = resolved["zero_optimization"], _stage(resolved)
    if _device(resolved, "offload_optimizer") != "none" and stage == 0:
        yield Limit(
            "offload-zero0",
            "zero_optimization.offload_optimizer needs stage 1 or higher",
            "use zero_optimization.stage=1 or more",
        )
    if _device(resolved, "offload_param") != "none" and stage != 3:
        yield Limit("offload-param", "zero_optimization.offload_param needs stage 3", "use zero_optimization.stage=3")
    optimizer = zero.get("offload_optimizer") or {}
    if optimizer.get("ratio", 1.0) != 1.0 or optimizer.get("super_offload") or zero.get("zenflow"):
        yield Limit(
            "own-adam",
            "offload_optimizer.ratio, super_offload and zenflow need DeepSpeed's own CPU Adam; this run has PyTorch's fused one",
            "remove the key",
        )


def _of_nvme(resolved: Resolved) -> Iterator[Limit]:
    sections = [name for name in ("offload_optimizer", "offload_param") if _device(resolved, name) == "nvme"]
    for name in sections:
        folder = resolved["zero_optimization"][name].get("nvme_path")
        if not folder or not Path(folder).is_dir():
            yield Limit(
                "nvme-path", f"zero_optimization.{name}.nvme_path = {folder!r} is no folder", "give a folder on a fast local disk"
            )
    if not sections:
        return
    if _stage(resolved) != 3:
        yield Limit("nvme-stage", "offloading to NVMe needs zero_optimization.stage = 3", "use stage 3, or offload to the cpu")
    if resolved["expert_parallel"]["enabled"] and "offload_optimizer" in sections:
        yield Limit(
            "nvme-experts",
            "offload_optimizer.device = nvme with AutoEP: the experts would be left out of every checkpoint",
            "use expert_parallel.enabled=false (ZeRO-3 then shards the experts like any weight), or offload to the cpu",
        )
    if not _has_libaio():
        yield Limit("no-libaio", "offloading to NVMe needs libaio, which is not installed", "apt install libaio-dev")


def _stage(resolved: Resolved) -> int:
    return int(resolved["zero_optimization"].get("stage", 0))


def _device(resolved: Resolved, name: str) -> str:
    return str((resolved["zero_optimization"].get(name) or {}).get("device", "none"))


def _has_libaio() -> bool:
    """Whether DeepSpeed's reader and writer of NVMe can be compiled here; it links a test program, 0.2 s."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    return bool(AsyncIOBuilder().is_compatible(verbose=False))
