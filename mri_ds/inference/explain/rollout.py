"""Attention rollout: from which tokens a prediction was gathered, through all layers of attention.

Axes: B batch, N tokens of the grid (d, h, w), D H W voxels of the network's grid.
In: a Scene and its targets.  Out: {label: (D, H, W)}, in multiples of an even share: 1 is an average voxel.
Each layer counts as half attention, half what the token held already: A' = (A + 1) / 2, A the mean over heads; the layers are
multiplied. The result is read from where the prediction is made: for a value or a class of the whole volume what its task token
read of the image, itself or through other tasks' tokens; for a structure the tokens on which it lies.
What goes past the tokens (convolutional skips to the decoder) is not attention, and not in it.
Source: Abnar and Zuidema 2020, "Quantifying Attention Flow in Transformers", section 3.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mri_ds.inference.explain.attention_maps import image_shares, inputs_of, pull_back
from mri_ds.inference.explain.scene import Scene, counted
from mri_ds.inference.explain.target import Target, share_of
from mri_ds.inference.explain.task_attention import task_shares, volume_tasks
from mri_ds.nn.windows import Grid


@torch.inference_mode()
def rollout(scene: Scene, targets: Sequence[Target], *, progress: Callable[[int, int], None] | None = None) -> dict[str, Tensor]:
    """{label: (D, H, W) float32, mean 1}; all 0 for a structure that is nowhere."""
    net = scene.net
    attentions: dict[str, nn.Module] = {f"block{i}": block.attention for i, block in enumerate(net.encoder.blocks)}  # type: ignore[misc]
    readers = {"image": net.cross_task.read_image, "tasks": net.cross_task.read_tasks} if net.cross_task is not None else {}

    def look(window: Tensor) -> dict[str, Tensor]:
        with inputs_of({**attentions, **readers}) as seen:
            outputs = scene.look(window)
        grid: Grid = seen["block0"][1]
        found = {}
        for target in targets:
            weights = _at_the_end(scene, target, outputs, seen, grid)
            for name in reversed(attentions):
                tokens, grid = seen[name]
                weights = (weights + pull_back(attentions[name], tokens, grid, weights)) / 2
            found[target.label] = on_voxels(weights.view(1, 1, *grid), net.stride, window.shape[2:])
        return found

    maps = scene.blended(counted(look, len(scene.corners), progress))
    return {label: volume[0, 0] / (volume.mean() or 1) for label, volume in maps.items()}


def _at_the_end(scene: Scene, target: Target, outputs: Mapping[str, Tensor], seen: Mapping[str, tuple], grid: Grid) -> Tensor:
    """How much each of the encoder's last tokens counts for the target, (1, N) >= 0; on average at most 1."""
    net = scene.net
    num = grid[0] * grid[1] * grid[2]
    if target.kind == "segmentation":
        share = share_of(scene, target, outputs[target.task])[None, None]
        over = [p for n, s in zip(reversed(share.shape[2:]), reversed(net.stride)) for p in (0, -n % s)]
        return F.avg_pool3d(F.pad(share, over), net.stride).view(1, num)
    if net.cross_task is None:  # the mean of all tokens
        return torch.ones(1, num, device=scene.image.device)
    of_image = image_shares(net.cross_task.read_image, *seen["image"]).mean(dim=1)  # (1, T, N)
    of_tasks = task_shares(net.cross_task, seen["tasks"][0]).mean(dim=1)  # (1, T, T)
    number = volume_tasks(net).index(target.task)
    own = torch.eye(len(of_tasks[0]), device=of_tasks.device)[number]
    return num * torch.einsum("bt,btn->bn", (of_tasks[:, number] + own) / 2, of_image)


def on_voxels(tokens: Tensor, stride: Sequence[int], shape: Sequence[int]) -> Tensor:
    """(B, K, d, h, w) -> (B, K, *shape): each voxel has what the token has in whose cell it lies."""
    for axis, s in enumerate(stride):
        tokens = tokens.repeat_interleave(s, dim=2 + axis)
    return tokens[:, :, : shape[0], : shape[1], : shape[2]]
