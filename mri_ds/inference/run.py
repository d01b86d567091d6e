"""A finished training run, ready to predict.

In: the run folder that training writes (config.yaml, manifest.json, model.safetensors).  Out: a Run, its network in evaluation
mode on one device, with everything that the preparation of an image needs.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from mri_ds.config import RunConfig, load_config
from mri_ds.data.manifest import Manifest
from mri_ds.errors import InputError
from mri_ds.mri_network import BaseMRINet

MISFIT = "use the config.yaml that this training wrote, or train again with the present version"


@dataclass(frozen=True)
class Run:
    """`channels` are in the order that the network takes them; `config` has no "auto" left."""

    net: nn.Module  # (B, C, D, H, W), (B, 3) mm -> {task: tensor}, as BaseMRINet
    config: RunConfig
    channels: list[str]
    device: torch.device


def load_run(run_dir: str | Path, device: str | torch.device | None = None) -> Run:
    """Loads a run's single-device weights; by default onto the GPU where there is one.

    Raises InputError for a folder that is not a run, a run that has not finished, and weights that are not this config's.
    """
    folder = Path(run_dir)
    config = load_config(_existing(folder, "config.yaml", "give the folder that `mri-ds train` wrote"))
    channels = _read_channels(_existing(folder, "manifest.json", "run the same train command again"))
    fix = "training has not finished; run the same train command again to resume"
    weights = _existing(folder, "model.safetensors", fix)
    target = torch.device(device) if device is not None else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = BaseMRINet(config.model, config.tasks)
    try:
        net.load_state_dict(load_file(weights), strict=True)
    except SafetensorError as err:
        raise InputError(f"is not a safetensors file ({err})", where=weights, fix=fix) from None
    except RuntimeError as err:  # torch names every missing, unexpected and misshapen weight
        raise InputError(f"does not fit {folder / 'config.yaml'}: {_first_problem(err)}", where=weights, fix=MISFIT) from None
    return Run(net.to(target).eval(), config, channels, target)


def _existing(folder: Path, name: str, fix: str) -> Path:
    if not folder.is_dir():
        raise InputError("is not a folder", where=folder, fix="give the folder that `mri-ds train` wrote")
    if not (folder / name).is_file():
        raise InputError(f"has no {name}", where=folder, fix=fix)
    return folder / name


def _read_channels(path: Path) -> list[str]:
    try:
        return Manifest.model_validate_json(path.read_bytes()).channels
    except ValidationError as err:
        raise InputError(
            f"is not a manifest: {err.errors()[0]['msg']}", where=path, fix="run the same train command again"
        ) from None


def _first_problem(err: RuntimeError) -> str:
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return lines[1][:200] if len(lines) > 1 else lines[0][:200]
