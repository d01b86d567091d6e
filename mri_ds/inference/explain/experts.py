"""Expert maps: which experts each voxel's token visited, in every layer that has them.

Axes: N tokens of the grid (d, h, w), K experts per token, E experts, D H W voxels.
In: a Run and a canonical Sample, or their Scene.  Out: numbers of experts, counted from 0, per layer, counted from 0.
A token's first choice is the expert whose output counts most for it. Windows overlap, and a token's neighbours differ from one to
the next: a voxel shows its choice in the window that it lies most centrally in, where the context is widest.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mri_ds.errors import InputError
from mri_ds.inference.explain.attention_maps import inputs_of
from mri_ds.inference.explain.rollout import on_voxels
from mri_ds.inference.explain.scene import Scene, counted, one_network, set_scene
from mri_ds.inference.run import Run
from mri_ds.mri_network import BaseMRINet
from mri_ds.nn.moe import Gate
from mri_ds.sample import Sample


@dataclass(frozen=True)
class Visits:
    """choices: by layer (K, D, H, W) int16 on the subject's own canonical grid, the first choice first, -1 where the network
    looked at nothing. load: by layer how many tokens of all windows visited each expert, (E,) int64; their sum is K a token."""

    choices: dict[int, np.ndarray]
    load: dict[int, np.ndarray]


def expert_map(run: Run, subject: Sample, *, overlap: float | None = None) -> dict[int, np.ndarray]:
    """{layer: (D, H, W) int16}: the number of the expert that counted most for each voxel, -1 outside of what was looked at.

    subject: in canonical orientation, on its own grid, as `predict_sample` takes it; the maps are on that grid. Raises InputError
    for a run without experts, and for one that averages several networks.

    >>> expert_map(load_run("runs/first"), sample)[0].shape == sample["image"].shape[1:]    # doctest: +SKIP
    True
    """
    check_experts(one_network(run))
    return {layer: choices[0] for layer, choices in visits(set_scene(run, subject, overlap=overlap)).choices.items()}


@torch.inference_mode()
def visits(scene: Scene, *, progress: Callable[[int, int], None] | None = None) -> Visits:
    """Every choice in every layer. Memory: K volumes of int16 for each layer."""
    gates = check_experts(scene.net)
    load = {layer: np.zeros(gate.out_features, dtype=np.int64) for layer, gate in gates.items()}

    def look(window: Tensor) -> dict[str, Tensor]:
        chosen, grid = route(scene.net, gates, lambda: scene.look(window))
        for layer, experts in chosen.items():
            load[layer] += np.bincount(experts.flatten().cpu().numpy(), minlength=len(load[layer]))
        return {
            str(layer): on_voxels(experts.T.reshape(1, -1, *grid), scene.net.stride, window.shape[2:])[0].to(torch.int16)
            for layer, experts in chosen.items()
        }

    maps = scene.chosen(counted(look, len(scene.corners), progress))
    return Visits({layer: np.stack([scene.ids_to_native(ids) for ids in maps[str(layer)]]) for layer in gates}, load)


def route(net: BaseMRINet, gates: dict[int, Gate], look: Callable[[], Any]) -> tuple[dict[int, Tensor], tuple[int, int, int]]:
    """By layer the experts of each token (N, K) int64, the one that counts most first; and the grid of the tokens."""
    chosen: dict[int, Tensor] = {}

    def note(layer: int) -> Any:
        def hook(gate: Gate, args: Any, out: tuple[Tensor, Tensor, Tensor]) -> None:
            weights, experts, _ = out
            chosen[layer] = experts.gather(1, weights.argsort(dim=1, descending=True, stable=True))

        return hook

    handles = [gate.register_forward_hook(note(layer)) for layer, gate in gates.items()]
    try:
        with inputs_of({"encoder": net.encoder}) as seen:
            look()
    finally:
        for handle in handles:
            handle.remove()
    return chosen, seen["encoder"][1]


def check_experts(net: BaseMRINet) -> dict[int, Gate]:
    """The router of each layer that has one. Raises InputError where there is none."""
    found = {
        number: part for number, block in enumerate(net.encoder.blocks) for part in block.modules() if isinstance(part, Gate)
    }
    if not found:
        what = "the run has no mixture of experts (model.use_moe is off)"
        raise InputError(what, where="--what experts", fix="leave it out of --what")
    return found
