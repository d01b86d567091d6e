"""Where this rank keeps its part of every parameter and of its optimiser's moments, under any ZeRO stage.

A parameter has one global tensor, under BaseMRINet's own name, on whatever number of ranks. A rank holds a run of it: of a dense
parameter the run that ZeRO gave it; of AutoEP's w1, w2, w3 the run of its own experts' rows in `gate_up_proj` or `down_proj`.
Axes: E experts, F expert width, D width.  Flat indices count float32 elements.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mri_ds.errors import InputError
from mri_ds.nn.moe import MixtureOfExperts
from mri_ds.training import distributed
from mri_ds.training.expert_parallel import moe_layers
from mri_ds.training.native_moe import NativeMixture

WEIGHT, MOMENTS = "fp32", ("exp_avg", "exp_avg_sq")  # as DeepSpeed's universal checkpoint calls them
KEYS = (WEIGHT, *MOMENTS)


@dataclass(frozen=True)
class Place:
    """Where a rank's local parameter lies in the global tensor `own`: element j of it is element
    (first + j // block) * stride + offset + j % block there."""

    own: str
    shape: tuple[int, ...]  # of the global tensor
    block: int
    stride: int
    offset: int = 0
    first: int = 0

    @property
    def rows(self) -> int:
        """Experts of the global tensor that have digests of their own; 1 for a dense parameter."""
        return torch.Size(self.shape).numel() // self.stride

    def local(self, full: Tensor, numel: int) -> Tensor:
        """The local parameter (numel,) out of the global tensor."""
        rows = full.reshape(-1, self.stride)[self.first : self.first + numel // self.block]
        return rows[:, self.offset : self.offset + self.block].reshape(-1)

    def runs(self, start: int, numel: int) -> Iterator[tuple[slice, int, int]]:
        """(slice of the part, first global index, row) of each unbroken run of local elements start..start+numel."""
        at = start
        while at < start + numel:
            row, inner = divmod(at, self.block)
            count = min(self.block - inner, start + numel - at)
            yield (
                slice(at - start, at - start + count),
                (self.first + row) * self.stride + self.offset + inner,
                self.first + row,
            )
            at += count


@dataclass(frozen=True)
class Part:
    """This rank's run start..start+numel of a local parameter, and where its values are."""

    name: str  # in the engine's module
    parameter: Any  # with what DeepSpeed hangs on it
    place: Place
    start: int
    numel: int
    is_counted: bool  # False on all but one of the ranks that hold the same run

    def read(self, key: str) -> Tensor:
        """(numel,) float32 of `key`, one of KEYS. Zeros for moments that the optimiser has not made yet."""
        found = _local(self.parameter, key)
        return torch.zeros(self.numel) if found is None else found.detach().reshape(-1)[: self.numel].float()


def places(module: nn.Module) -> dict[str, Place]:
    """Of every parameter of an engine's module, by its name there."""
    out = {}
    for name, p in module.named_parameters():
        shape = tuple(getattr(p, "ds_shape", p.shape))
        numel = torch.Size(shape).numel()
        out[name] = Place(name, shape, numel, numel)
    for name, layer in moe_layers(module):
        if isinstance(layer, MixtureOfExperts):
            for child in ("gate_up_proj", "down_proj"):
                place = out[f"{name}.experts.{child}"]
                block = place.block // place.shape[0]
                out[f"{name}.experts.{child}"] = Place(place.own, place.shape, block, block)
            continue
        if isinstance(layer, NativeMixture):
            out |= _native_places(name, layer, out)
            continue
        experts, width, dim = layer.num_experts, *out[f"{name}.experts.w1"].shape[1:]
        first, block = layer.ep_rank * layer.num_local_experts, width * dim
        up, down = f"{name}.experts.gate_up_proj", f"{name}.experts.down_proj"
        out[f"{name}.experts.w1"] = Place(up, (experts, 2 * width, dim), block, 2 * block, 0, first)
        out[f"{name}.experts.w3"] = Place(up, (experts, 2 * width, dim), block, 2 * block, block, first)
        out[f"{name}.experts.w2"] = Place(down, (experts, dim, width), block, block, 0, first)
        gate = out[f"{name}.router.gate.weight"]
        out[f"{name}.router.gate.weight"] = Place(f"{name}.gate.weight", gate.shape, gate.block, gate.stride)
    return out


def _native_places(name: str, layer: NativeMixture, plain: dict[str, Place]) -> dict[str, Place]:
    """DeepSpeed's own MoE layer holds every expert apart."""
    inside, out = f"{name}.native.deepspeed_moe", {}
    for i in range(layer.num_local_experts):
        for child in ("gate_up_proj", "down_proj"):
            key = f"{inside}.experts.deepspeed_experts.{i}.{child}"
            block, shape = plain[key].block, (layer.num_experts, *plain[key].shape)
            out[key] = Place(f"{name}.experts.{child}", shape, block, block, 0, layer.first_expert + i)
    gate = plain[f"{inside}.gate.wg.weight"]
    out[f"{inside}.gate.wg.weight"] = Place(f"{name}.gate.weight", gate.shape, gate.block, gate.stride)
    return out


def own_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Buffers that a checkpoint keeps (the experts' selection biases), by BaseMRINet's own names; the tensors themselves."""
    kept = set(module.state_dict(keep_vars=True)) if not hasattr(module, "ds_id") else set()
    return {
        re.sub(r"\.(router|native\.deepspeed_moe\.gate\.wg)\.e_score", ".gate.e_score", name): buffer
        for name, buffer in module.named_buffers()
        if (not kept or name in kept) and not name.endswith("tokens_per_expert")
    }


def parts(engine: Any) -> list[Part]:
    """This rank's, in the module's order. Raises InputError for an optimiser whose shards this module cannot tell apart."""
    _link_moments(engine.optimizer)
    _link_masters(engine)
    found = places(engine.module)
    out = []
    for name, p in engine.module.named_parameters():
        if not p.requires_grad:
            continue
        start, numel = _run(p, engine)
        if numel:
            out.append(Part(name, p, found[name], start, numel, _is_counted(p, engine)))
    return out


def prepare_moments(engine: Any) -> None:
    """Makes the optimiser's moments where it makes them at its first step only, so that they can be loaded into."""
    optimizer = engine.optimizer
    base = getattr(optimizer, "optimizer", optimizer)
    flat = getattr(optimizer, "fp32_partitioned_groups_flat", None)  # ZeRO-3, whose groups are empty between steps
    for p in flat if flat is not None else [p for group in base.param_groups for p in group["params"]]:
        if not base.state.get(p):
            base.state[p] = {"step": _step_like(base, 0), **{key: torch.zeros_like(p.data) for key in MOMENTS}}
    _link_moments(optimizer)


def write(part: Part, key: str, local: Tensor) -> None:
    """Sets this part to its run of the local parameter's values (flat, whole)."""
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    p, values = part.parameter, local[part.start : part.start + part.numel]
    if hasattr(p, "ds_id"):
        padded = torch.zeros(p.ds_tensor.numel(), dtype=torch.float32)
        padded[: part.numel] = values
        if key == WEIGHT:
            safe_set_local_fp32_param(p, padded)
        else:
            safe_set_local_optimizer_state(p, padded, key)
    else:
        target = _local(p, key)
        assert target is not None
        target.data.copy_(values.view(target.shape))


def weights_written(engine: Any) -> None:
    """After the float32 weights were set: brings them to the copies that the network computes with."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "fp16_partitioned_groups_flat"):  # ZeRO-3, as at the end of its own loading
        pairs = zip(optimizer.fp16_partitioned_groups_flat, optimizer.fp32_partitioned_groups_flat, strict=True)
        for index, (low, high) in enumerate(pairs):
            low.data.copy_(high.data)
            shards = optimizer.fp16_partitioned_groups[index]
            for shard, values in zip(shards, optimizer.unflatten(low, shards), strict=True):
                shard.data = values.data
    elif hasattr(optimizer, "update_lp_params"):
        optimizer.update_lp_params()
    else:
        for p in engine.module.parameters():
            p.data.copy_(p._float32.data)


def adam_step(engine: Any) -> int:
    """Updates that the optimiser has made; the largest of its parameters'."""
    base = getattr(engine.optimizer, "optimizer", engine.optimizer)
    told = [state["step"] for state in base.state.values() if "step" in state]
    told += [group["step"] for group in base.param_groups if "step" in group]
    return max((int(step) for step in told), default=0)


def set_adam_step(engine: Any, step: int) -> None:
    """DeepSpeed's converter loses the experts' and, from ZeRO-3, everyone's: bias correction would start over."""
    base = getattr(engine.optimizer, "optimizer", engine.optimizer)
    for state in base.state.values():
        state["step"] = torch.full_like(state["step"], step) if isinstance(state.get("step"), Tensor) else _step_like(base, step)
    for group in base.param_groups:
        if "step" in group:
            group["step"] = step


def _link_moments(optimizer: Any) -> None:
    """ZeRO 1 and 2 step group by group and tell parameters where their moments are after the first group, when the other groups
    have none yet; so they are told again."""
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()


def _link_masters(engine: Any) -> None:
    """Without ZeRO: hangs on each parameter its float32 self, and the state of the optimiser that updates it."""
    optimizer = engine.optimizer
    if isinstance(optimizer, torch.optim.Optimizer):
        pairs = [(p, p) for group in optimizer.param_groups for p in group["params"]]
        state = optimizer.state
    elif hasattr(optimizer, "fp32_groups"):  # FP16_UnfusedOptimizer, in bf16 too
        low, high = optimizer.fp16_groups, optimizer.fp32_groups
        pairs = [pair for group in zip(low, high, strict=True) for pair in zip(*group, strict=True)]
        state = optimizer.optimizer.state
    elif not hasattr(optimizer, "_lazy_init_hp_params_optimizer_state") and not hasattr(
        optimizer, "fp32_partitioned_groups_flat"
    ):
        raise InputError(
            f"{type(optimizer).__name__} keeps its weights where no other layout can take them from",
            where="checkpoint",
            fix="use ZeRO stage 1 or higher, or resume with the ranks and the stage of before",
        )
    else:
        return
    for p, high_p in pairs:
        p._float32, p._float32_state = high_p, state


def _step_like(base: Any, step: int) -> Any:
    is_torch = type(base).__module__.startswith("torch.optim")
    return torch.tensor(float(step)) if is_torch else step


def _run(p: Any, engine: Any) -> tuple[int, int]:
    if hasattr(p, "ds_id"):
        size = p.ds_tensor.numel()
        start = size * p._z3_optimizer._get_param_partition_rank(p)
        return start, max(0, min(size, p.ds_numel - start))
    if hasattr(p, "_hp_mapping"):
        mapping = p._hp_mapping
        if mapping is None:
            return 0, 0
        address = mapping.lp_fragment_address
        return address.start, address.numel
    return 0, p.numel()


def _local(p: Any, key: str) -> Tensor | None:
    from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

    if hasattr(p, "ds_id"):
        return safe_get_local_fp32_param(p) if key == WEIGHT else safe_get_local_optimizer_state(p, key)
    if hasattr(p, "_hp_mapping"):
        mapping: Any = p._hp_mapping
        if key == WEIGHT:
            return mapping.get_hp_fragment()
        return mapping.get_hp_fragment(key) if key in (mapping.optim_fragment or {}) else None
    return p._float32 if key == WEIGHT else p._float32_state.get(p._float32, {}).get(key)


def _is_counted(p: Any, engine: Any) -> bool:
    """Shards are one rank's each; without ZeRO all replicas hold the same, and the first of them counts."""
    if hasattr(p, "ds_id") or hasattr(p, "_hp_mapping"):
        return True
    if getattr(p, "allreduce", True):
        return distributed.rank() == 0
    from deepspeed.utils import groups

    return groups._get_expert_data_parallel_rank(p.group_name) == 0
