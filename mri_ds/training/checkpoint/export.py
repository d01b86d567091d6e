"""RUN/model.safetensors: float32 weights under BaseMRINet's own names, for any single device, without DeepSpeed."""

import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mri_ds.training import distributed
from mri_ds.training.expert_parallel import own_state


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

    value = safe_get_full_fp32_param(p)
    return (p.detach() if value is None else value).view(getattr(p, "ds_shape", p.shape)).clone()
