"""From a sharded checkpoint of any layout to one file for any single device, or to DeepSpeed's universal folder.

| to          | what                                                                                          |
|-------------|-----------------------------------------------------------------------------------------------|
| safetensors | float32 weights under BaseMRINet's own names, as RUN/model.safetensors: for this package        |
| fp32        | the same as a PyTorch state dict (.pt, tensors alone: loads with weights_only=True)             |
| universal   | a folder that DeepSpeed itself loads (`"checkpoint": {"load_universal": true}`), moments included |
Every tensor is compared with the digest that was taken of the engine at saving: equal bit for bit, or refused.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import mri_ds.training.checkpoint.folder as on_disk
from mri_ds.errors import InputError
from mri_ds.training.checkpoint.digest import differences, digest_of_whole
from mri_ds.training.checkpoint.parts import KEYS, WEIGHT
from mri_ds.training.checkpoint.universal import Universal, convert
from mri_ds.training.distributed import prepare_environment


def convert_run(run_dir: Path, to: str, *, step: int | None = None, out: Path | None = None) -> dict[str, Any]:
    """Converts the newest complete checkpoint of a run, or that of `step`; {"checkpoint", "step", "to", "out", "parameters"}.

    Raises InputError for a run without checkpoints and a step that none is of, CorruptError for one that is not what was saved.
    """
    prepare_environment()
    source = _source(run_dir, step)
    if finding := on_disk.verify(source):
        raise on_disk.refuse(source, finding)
    state = on_disk.read_state(source)
    stage = state["engine"]["layout"]["zero_stage"]
    suffix = {"safetensors": ".safetensors", "fp32": ".pt", "universal": ""}[to]
    out = out or run_dir / f"{'universal' if to == 'universal' else 'model'}-{source.name}{suffix}"
    if out.exists():
        raise InputError("exists already", where=out, fix="choose another --out, or remove it")
    if to == "universal" and stage == 0:
        raise InputError("ZeRO stage 0 has no universal form that DeepSpeed reads", where=source, fix="convert it to safetensors")
    scratch = out.with_name(out.name + ".part")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        convert(source, scratch, zero_stage=stage)
        check(Universal(scratch), state, source)
        if to == "universal":
            os.rename(scratch, out)
        else:
            _write(out, weights(Universal(scratch), state, load_file(source / on_disk.TENSORS)))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    parameters = sum(torch.Size(shape).numel() for shape in state["shapes"].values())
    return {"checkpoint": str(source), "step": state["step"], "to": to, "out": str(out), "parameters": parameters}


def weights(universal: Universal, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's float32 weights and buffers by BaseMRINet's own names; the objective's other parameters are left out."""
    found = {name: universal.own(name, WEIGHT).reshape(shape) for name, shape in state["shapes"].items()}
    found |= {name.removeprefix("buffer/"): value for name, value in tensors.items() if name.startswith("buffer/")}
    return {name.removeprefix("net."): value.float().contiguous() for name, value in found.items() if name.startswith("net.")}


def check(universal: Universal, state: Mapping[str, Any], source: Path) -> None:
    """Raises CorruptError, naming the parameter, where a whole tensor is not bit for bit what the engine had when it saved."""
    found: dict[str, dict[str, list[int]]] = {}
    for name, shape in state["shapes"].items():
        rows = len(state["digests"][name][WEIGHT])
        found[name] = {key: digest_of_whole(universal.own(name, key).reshape(shape), rows) for key in KEYS}
    if wrong := differences(state["digests"], found):
        raise on_disk.refuse(source, f"not what was saved: {'; '.join(wrong[:3])}")


def _source(run_dir: Path, step: int | None) -> Path:
    found = on_disk.complete(run_dir)
    if not found:
        raise InputError("holds no complete checkpoint", where=run_dir, fix="give the run folder that `mri-ds train` wrote")
    if step is None:
        return found[-1]
    if (wanted := on_disk.folder_of(run_dir, step)) not in found:
        steps = ", ".join(str(on_disk.step_of(p)) for p in found)
        raise InputError(f"holds no complete checkpoint of step {step}", where=run_dir, fix=f"choose one of {steps}")
    return wanted


def _write(out: Path, found: dict[str, Tensor]) -> None:
    part = out.with_name(out.name + ".writing")
    try:
        save_file(found, part) if out.suffix == ".safetensors" else torch.save(found, part)
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)
