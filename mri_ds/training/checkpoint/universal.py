"""DeepSpeed's universal checkpoint: the one layout between any sharded checkpoint and any other reader.

    FOLDER/zero/PARAMETER/{fp32,exp_avg,exp_avg_sq}.pt   one whole tensor each, names as in the engine that saved
`convert` makes one: by DeepSpeed's converter for ZeRO 1 to 3, here for stage 0, which the converter does not know. `Universal`
reads one under our own names. Loading is ours (restore.py): DeepSpeed's own loading gives all parameters the learning rate and
weight decay of the first group, forgets the experts' step count and all buffers, and cannot change the ZeRO stage.
"""

import contextlib
import io
import os
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mri_ds.errors import CorruptError
from mri_ds.training.checkpoint.parts import KEYS, MOMENTS, WEIGHT, Place
from mri_ds.training.checkpoint.shards import load_trusting_nothing, only_known_classes


def convert(folder: Path, out: Path, *, zero_stage: int) -> None:
    """Writes the universal form of a sharded checkpoint into `out`. One process calls it."""
    (out / "zero").mkdir(parents=True)
    if zero_stage == 0:
        _convert_plain(folder, out)
        return
    from deepspeed.checkpoint import ds_to_universal

    settings = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False, "strict": True}
    arguments = Namespace(input_folder=str(folder), output_folder=str(out), inject_missing_state=True, **settings)
    with only_known_classes(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ds_to_universal.main(arguments)
    (out.parent / "latest_universal").unlink(missing_ok=True)  # it names a folder that is not there to stay


class Universal:
    """Whole float32 tensors of a universal checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.zero = folder / "zero"

    def local(self, name: str, place: Place, key: str, numel: int) -> Tensor:
        """(numel,) of an engine's local parameter `name` that lies at `place`. Only the pages that it needs are read."""
        if (self.zero / name / f"{key}.pt").is_file() and place.own != name:  # AutoEP's own layout on both sides
            rows = self._load(name, key).reshape(-1, place.block)
            return rows[place.first : place.first + numel // place.block].reshape(-1)
        return place.local(self.own(place.own, key).reshape(place.shape), numel)

    def own(self, name: str, key: str) -> Tensor:
        """The global tensor under BaseMRINet's own name; flat where the checkpoint keeps it so."""
        if (self.zero / name / f"{key}.pt").is_file():
            return self._load(name, key)
        layer, _, child = name.rpartition(".experts.")
        if child == "gate_up_proj":
            return torch.cat([self._load(f"{layer}.experts.{w}", key) for w in ("w1", "w3")], dim=1)
        if child == "down_proj":
            return self._load(f"{layer}.experts.w2", key)
        return self._load(re.sub(r"\.gate\.weight$", ".router.gate.weight", name), key)

    def _load(self, name: str, key: str) -> Tensor:
        path = self.zero / name / f"{key}.pt"
        if not path.is_file():
            raise CorruptError(f"holds no {key} of {name}", where=self.zero.parent, fix="resume from another checkpoint")
        with only_known_classes():
            found = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        return found["param"] if isinstance(found, dict) else found  # type: ignore[no-any-return]


def _convert_plain(folder: Path, out: Path) -> None:
    """ZeRO 0: whole dense tensors in one file, each expert's weights in its own, the optimiser's by expert-parallel rank."""
    model = load_trusting_nothing(folder / "mp_rank_00_model_states.pt")
    weights, layers = model["module"], model.get("ds_autoep_layers") or []
    experts = {f"{layer['expert_key_prefix']}.{w}": layer for layer in layers for w in ("w1", "w2", "w3")}
    optimizers = [model["optimizer"]] if not layers else []
    if layers:
        size = layers[0]["ep_size"]
        optimizers = [
            load_trusting_nothing(folder / f"expp_rank_{r}_mp_rank_00_optim_states.pt")["optimizer"] for r in range(size)
        ]
    names = _names_by_index(folder)
    for index, name in names.items():
        if name in experts:
            layer = experts[name]
            ids = range(layer["num_experts"])
            found = [_expert(folder, layer["moe_layer_id"], e)[f"{name}.{e}"] for e in ids]
            states = {WEIGHT: torch.stack(found)}
            locals_ = states[WEIGHT].chunk(len(optimizers))
            for key in MOMENTS:
                states[key] = torch.cat([_moment(o, index, key, like=own) for o, own in zip(optimizers, locals_, strict=True)])
        else:
            states = {WEIGHT: weights[name], **{key: _moment(optimizers[0], index, key, like=weights[name]) for key in MOMENTS}}
        for key in KEYS:
            path = out / "zero" / name / f"{key}.pt"
            os.makedirs(path.parent, exist_ok=True)
            torch.save({"param": states[key].float()}, path)


def _expert(folder: Path, layer: int, expert: int) -> Any:
    return load_trusting_nothing(folder / f"layer_{layer}_expert_{expert}_mp_rank_00_model_states.pt")


def _moment(optimizer: Any, index: int, key: str, like: Tensor) -> Tensor:
    state = optimizer["state"].get(index)  # none of a parameter that never had a gradient
    return torch.zeros_like(like) if state is None else state[key]


def _names_by_index(folder: Path) -> dict[int, str]:
    """Names of the optimiser's parameters by their number in its state dict, which the checkpoint's own state tells."""
    from mri_ds.training.checkpoint.folder import read_state

    return {int(index): name for index, name in read_state(folder)["engine"]["parameter_names"].items()}
