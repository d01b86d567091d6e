"""The one number that is explained: a structure's volume, a class's probability, or a value.

Axes: K classes, D H W voxels of the network's grid.
In: the network's outputs for a whole volume, windows joined as in prediction.  Out: a scalar in the unit of the target.
Volume is the expected one, the sum of probabilities, because the count of labels has no gradient; probabilities are calibrated
where the run is.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mri_ds.config import nearest
from mri_ds.errors import InputError
from mri_ds.inference.explain.scene import Scene
from mri_ds.inference.run import Run


@dataclass(frozen=True)
class Target:
    """Class None: all structures together (segmentation), or a value (regression)."""

    task: str
    kind: str
    unit: str  # "mL", "probability", or the task's own
    class_name: str | None = None
    index: int | None = None

    @property
    def label(self) -> str:
        """As it stands in the names of files."""
        name = self.task if self.class_name is None else f"{self.task}-{self.class_name}"
        return re.sub(r"[^\w.-]+", "-", name)

    def as_dict(self) -> dict[str, str | None]:
        return {"task": self.task, "class": self.class_name, "unit": self.unit}


def check_names(run: Run, task: str | None, class_name: str | None) -> None:
    """Raises InputError for a task or a class that the run does not know, and for a class of a task that has none."""
    tasks = run.config.tasks
    if task is not None and task not in tasks:
        raise InputError(f"the run has no task {task!r}", where="--task", fix=nearest(task, list(tasks)))
    if class_name is None:
        return
    if task is None:
        raise InputError(f"{class_name!r} is a class of which task?", where="--class", fix="name it with --task")
    classes = tasks[task].classes
    if not classes:
        raise InputError(f"task {task!r} is a {tasks[task].kind}: it has no classes", where="--class", fix="leave --class out")
    if class_name not in classes:
        raise InputError(f"task {task!r} has no class {class_name!r}", where="--class", fix=nearest(class_name, classes))


def choose_targets(scene: Scene, outputs: Mapping[str, Tensor], task: str | None, class_name: str | None) -> list[Target]:
    """Of one task, or of every task. Without a class: of a segmentation all structures together, of a classification the
    class that is predicted. outputs: of the whole volume."""
    found = []
    for name, config in scene.run.config.tasks.items():
        if task is not None and name != task:
            continue
        index = config.classes.index(class_name) if class_name is not None else None
        if config.kind == "classification" and index is None:
            index = int(outputs[name][0].argmax())
        unit = {"segmentation": "mL", "classification": "probability"}.get(config.kind, config.unit)
        found.append(Target(name, config.kind, unit, None if index is None else config.classes[index], index))
    return found


def value_of(scene: Scene, target: Target, output: Tensor) -> Tensor:
    """The target's number, a scalar, of its task's output for the whole volume: (1, K, D, H, W), (1, K) or (1,)."""
    if target.kind == "regression":
        return output[0].double()
    if target.kind == "classification":
        return (output[0].double() / scene.run.calibration.of(target.task).temperature).softmax(dim=0)[target.index]
    return share_of(scene, target, output).sum(dtype=torch.float64) * scene.voxel_ml


def share_of(scene: Scene, target: Target, logits: Tensor) -> Tensor:
    """How far each voxel belongs to the target's structure: logits (1, K, D, H, W) -> (D, H, W), 0..1."""
    chances = (logits.float() / scene.run.calibration.of(target.task).temperature).softmax(dim=1)[0]
    return chances[1:].sum(dim=0) if target.index is None else chances[target.index]
