"""Task-to-task attention: how much the tasks of the whole volume read of one another, for one subject.

Axes: B batch, T volume tasks (classification and regression, in the config's order), H heads.
In: a Scene.  Out: (H, T, T): row t is what task t reads, each row sums to 1.
Segmentation tasks read no task tokens, and are not in it: they reach the volume heads as the volumes of their structures.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mri_ds.errors import InputError
from mri_ds.inference.explain.attention_maps import inputs_of, query_key, shares
from mri_ds.inference.explain.scene import Scene, counted
from mri_ds.mri_network import BaseMRINet
from mri_ds.nn.cross_task import CrossTaskAttention


@torch.inference_mode()
def task_attention(scene: Scene, *, progress: Callable[[int, int], None] | None = None) -> Tensor:
    """(H, T, T) float32, the mean over the subject's windows, as the predictions are. Raises InputError as `check_tasks`."""
    cross_task = check_tasks(scene.net)

    def look(window: Tensor) -> dict[str, Tensor]:
        with inputs_of({"tasks": cross_task.read_tasks}) as seen:
            scene.look(window)
        return {"map": task_shares(cross_task, seen["tasks"][0])}

    return scene.blended(counted(look, len(scene.corners), progress))["map"][0]


def task_shares(cross_task: CrossTaskAttention, tokens: Tensor) -> Tensor:
    """Task tokens (B, T, D), as they went into the attention among tasks -> what each reads of each, (B, H, T, T)."""
    return shares(*query_key(cross_task.read_tasks, tokens, (tokens.shape[1], 1, 1)))


def volume_tasks(net: BaseMRINet) -> list[str]:
    """In the order of their tokens."""
    return list(net.volume_heads.tasks) if net.volume_heads is not None else []


def check_tasks(net: BaseMRINet) -> CrossTaskAttention:
    """Raises InputError for a network whose tasks do not read one another."""
    if net.cross_task is None:
        why = "has no attention between tasks: no classification or regression, or model.use_cross_task is off"
        raise InputError(f"the run {why}", where="--what tasks", fix="leave it out of --what")
    return net.cross_task
