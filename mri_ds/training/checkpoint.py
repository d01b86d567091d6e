"""Checkpoints of a run: sharded ones to resume from, and one file of plain weights at the end.

RUN/checkpoints/step000100/ is DeepSpeed's own sharded state (weights, both Adam moments, schedule) with our `client_state`;
RUN/checkpoints/latest names the last complete one, and is written last, so a killed write never shadows a good one.
RUN/model.safetensors holds float32 weights under BaseMRINet's own names, for any single device, without DeepSpeed.
"""

import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mri_ds.errors import InputError
from mri_ds.training import distributed
from mri_ds.training.expert_parallel import own_state

KEEP = 2


def save(engine: Any, run_dir: Path, step: int, *, data: Mapping[str, Any]) -> None:
    """Writes a resumable checkpoint of `step` and removes all but the last KEEP. Every rank must call it.

    `data`: where the loader stands, see training.course.Course.state.
    """
    folder = run_dir / "checkpoints"
    engine.save_checkpoint(str(folder), tag=f"step{step:06d}", client_state={"step": step, "data": dict(data)})
    distributed.barrier()
    if distributed.rank() == 0:
        for old in sorted(p for p in folder.glob("step*") if re.fullmatch(r"step\d{6,}", p.name))[:-KEEP]:
            shutil.rmtree(old)


def resume(engine: Any, run_dir: Path, check_data: Callable[[Mapping[str, Any]], None]) -> int:
    """Loads the last complete checkpoint, if any, and returns its step (0: nothing to resume).

    `check_data` hears what `save` was told of the data, and raises InputError where it is not the same any more.
    """
    folder = run_dir / "checkpoints"
    if not (folder / "latest").is_file():
        return 0
    if engine.zero_nvme_offload_optimizer():  # seen: the weights stay those of the new engine until its first step
        raise InputError(
            "DeepSpeed 0.19 does not restore the weights of a run whose moments are on NVMe",
            where=folder,
            fix="train such a run in one go, or offload to the cpu; to begin anew choose another --run",
        )
    _, client_state = engine.load_checkpoint(str(folder))
    check_data(client_state.get("data", {}))
    return int(client_state["step"])


def export(engine: Any, run_dir: Path) -> None:
    """Gathers the network's weights from all ranks into RUN/model.safetensors. Every rank must call it."""
    state = {name: _full(p) for name, p in engine.module.named_parameters()}
    state |= dict(engine.module.named_buffers())
    state = own_state(engine.module, state)
    if distributed.rank() == 0:
        persistent = set(own_names(engine.module, state))
        weights = {
            name.removeprefix("net."): value.detach().float().cpu().contiguous()
            for name, value in state.items()
            if name.startswith("net.") and name in persistent
        }
        part = run_dir / "model.safetensors.part"
        save_file(weights, part)
        os.replace(part, run_dir / "model.safetensors")
    distributed.barrier()


def own_names(module: torch.nn.Module, state: dict[str, torch.Tensor]) -> list[str]:
    """Names of `state` less buffers that a state dict does not carry."""
    return [name for name in state if not name.endswith("tokens_per_expert")]


def _full(p: torch.nn.Parameter) -> torch.Tensor:
    """The unsharded float32 value of a parameter under any ZeRO stage: the optimiser's master copy where there is one."""
    from deepspeed.utils import safe_get_full_fp32_param

    value = getattr(p, "float32_weights", None)  # half precision without ZeRO, see half_precision.py
    value = safe_get_full_fp32_param(p) if value is None else value
    return (p.detach() if value is None else value).view(getattr(p, "ds_shape", p.shape)).clone()
