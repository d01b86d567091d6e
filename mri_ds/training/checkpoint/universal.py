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
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mri_ds.errors import CorruptError, RunError
from mri_ds.training.checkpoint.folder import read_state
from mri_ds.training.checkpoint.parts import KEYS, MOMENTS, WEIGHT, Place
from mri_ds.training.checkpoint.shards import load_trusting_nothing, only_known_classes

ROOM = 2.5  # times the checkpoint: the converter's fragments, the whole tensors, a rank's optimiser once more


def convert(folder: Path, out: Path, *, zero_stage: int) -> None:
    """Writes the universal form of a sharded checkpoint into `out`. One process calls it.

    Raises RunError where the disk is too small for it.
    """
    size, free = sum(p.stat().st_size for p in folder.iterdir()), shutil.disk_usage(out.parent).free
    if free < ROOM * size:
        need = f"needs {ROOM * size / 1e9:.1f} GB of disk for a while, and {free / 1e9:.1f} GB are free"
        raise RunError(f"{folder}: changing its layout {need}")
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
    """ZeRO 0: dense tensors in one file and in one optimiser's, the experts' by expert-parallel rank."""
    model = load_trusting_nothing(folder / "mp_rank_00_model_states.pt")
    layers = model.get("ds_autoep_layers") or []
    paths = [folder / f"expp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(layers[0]["ep_size"])] if layers else []
    optimizers = [load_trusting_nothing(path)["optimizer"] for path in paths] or [model["optimizer"]]
    experts = {f"{layer['expert_key_prefix']}.{w}": layer for layer in layers for w in ("w1", "w2", "w3")}
    for index, name in enumerate(read_state(folder)["engine"]["parameter_names"]):
        low = _experts(folder, name, experts[name], len(optimizers)) if name in experts else [model["module"][name]]
        states = [_states(optimizer, index, weight) for optimizer, weight in zip(optimizers, low, strict=False)]
        for key in KEYS:
            path = out / "zero" / name / f"{key}.pt"
            os.makedirs(path.parent, exist_ok=True)
            torch.save({"param": torch.cat([state[key] for state in states]) if len(states) > 1 else states[0][key]}, path)


def _experts(folder: Path, name: str, layer: Any, num_ranks: int) -> list[Tensor]:
    """The experts' weights (E/R, ...) of each expert-parallel rank, in the precision that the network computes with."""
    number, found = layer["moe_layer_id"], []
    for expert in range(layer["num_experts"]):
        held = load_trusting_nothing(folder / f"layer_{number}_expert_{expert}_mp_rank_00_model_states.pt")
        found.append(held[f"{name}.{expert}"])
    return list(torch.stack(found).chunk(num_ranks))


def _states(optimizer: Any, index: int, weight: Tensor) -> dict[str, Tensor]:
    """Weight and moments in float32 of parameter number `index` of one optimiser."""
    masters = [p for group in optimizer.get("fp32_groups", []) for p in group]
    state = optimizer.get("optimizer_state_dict", optimizer)["state"].get(index)  # None of one that never had a gradient
    moments = {key: torch.zeros_like(weight).float() if state is None else state[key] for key in MOMENTS}
    return {WEIGHT: masters[index].detach() if masters else weight.float(), **moments}
