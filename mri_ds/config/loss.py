"""What the losses of a task are made of: for all tasks at once, and for single ones where they differ."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mri_ds.config.model import ModelConfig
from mri_ds.config.spelling import nearest
from mri_ds.config.strict import Strict
from mri_ds.config.task import TaskConfig
from mri_ds.errors import InputError

Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class LossTerms(Strict):
    """`dice`, `tversky`, `cross_entropy` and `boundary` weigh the terms of a segmentation; what follows each are its options."""

    dice: Weight = 1.0
    dice_kind: Literal["soft", "generalised"] = "soft"  # generalised: one Dice of all classes, each by its volume to the -2
    smooth: float = Field(default=1e-5, gt=0)  # of Dice and Tversky, in voxels: an absent class that is not predicted is perfect
    include_background: bool = False  # in Dice, Tversky and distances
    tversky: Weight = 0.0
    tversky_alpha: Share = 0.5  # weight of false positives
    tversky_beta: Share = 0.5  # and of false negatives
    cross_entropy: Weight = 1.0
    class_balance: Share = 0.5  # cross-entropy weight of a class: its voxel share to minus this power
    focal_gamma: Weight = 0.0  # 0 is plain cross-entropy
    focal_alpha: Share | None = None  # weight of foreground voxels, 1 less it that of background ones
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)  # of classification as well
    boundary: Weight = 0.0
    boundary_kind: Literal["neighbours", "distance"] = "neighbours"  # cross-entropy of border voxels, or distance from the border
    boundary_reach: int = Field(default=8, ge=2)  # voxels; errors further from the border than this count as being this far
    deep_supervision: list[Annotated[float, Field(gt=0)]] = Field(default=[1.0, 0.5], min_length=2, max_length=2)  # full, half
    classification: Literal["cross_entropy", "ordinal"] = "cross_entropy"  # ordinal: classes are grades, listed from low to high
    regression: Literal["smooth_l1", "gaussian_nll"] = "smooth_l1"
    smooth_l1_beta: float = Field(default=1.0, gt=0)  # standard deviations up to which the error counts by its square


class TaskLossConfig(LossTerms):
    """Of one task. What is not given here is as `loss` has it."""

    ignore: str = ""  # a class of a segmentation whose voxels count in no term, such as "unsure"
    regions: dict[str, list[str]] = {}  # name: classes whose union it is; they may overlap. Dice and Tversky are of these instead


class LossConfig(LossTerms):
    """Losses of all tasks; between tasks the weights are learned."""

    learn_task_weights: bool = True
    router_z: Weight = 0.0  # weight of the routers' z-loss, usually 0.001; keeps their logits small
    router_balance: Weight = 0.0  # and of Switch's balance loss, usually 0.01; training.balance_rate does without a gradient
    tasks: dict[str, TaskLossConfig] = {}

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, raw: Any) -> Any:
        """Tasks take over what `loss` says and they do not: a config that is written down says everything."""
        if not isinstance(raw, Mapping) or not isinstance(raw.get("tasks"), Mapping):
            return raw
        common = {key: value for key, value in raw.items() if key in LossTerms.model_fields}
        tasks = {name: {**common, **task} if isinstance(task, Mapping) else task for name, task in raw["tasks"].items()}
        return {**raw, "tasks": tasks}

    def of(self, task: str) -> TaskLossConfig:
        common = {name: getattr(self, name) for name in LossTerms.model_fields}
        return self.tasks.get(task) or TaskLossConfig(**common)


def check_losses(loss: LossConfig, tasks: Mapping[str, TaskConfig], model: ModelConfig, *, where: str) -> None:
    """Raises InputError for a task that is not learned, a class that it has not, a loss that the network has no output for.

    Without `tasks` the shards' manifest is still to name them.
    """
    everywhere: dict[str, LossTerms] = {**loss.tasks, "": loss}
    for name, terms in everywhere.items():
        key = f"loss.tasks.{name}" if name else "loss"
        if terms.regression == "gaussian_nll" and not model.predict_variance:
            raise InputError(
                f"{key}.regression = gaussian_nll needs a predicted variance", where=where, fix="set model.predict_variance=true"
            )
        if name and tasks and name not in tasks:
            raise InputError(f"{key}: no such task", where=where, fix=nearest(name, list(tasks)))
    for name, own in loss.tasks.items():
        task = tasks.get(name)
        if task is None:
            continue
        if (own.ignore or own.regions) and task.kind != "segmentation":
            raise InputError(f"loss.tasks.{name}: ignore and regions are of segmentations", where=where, fix="leave them out")
        for region, classes in own.regions.items():
            if not 0 < len(set(classes)) < len(task.classes):
                what = f"loss.tasks.{name}.regions.{region} has {len(set(classes))} of {len(task.classes)} classes"
                raise InputError(what, where=where, fix="name some of them, but not all")
        for given in [*([own.ignore] if own.ignore else []), *(c for classes in own.regions.values() for c in classes)]:
            if given not in task.classes:
                raise InputError(f"loss.tasks.{name}: no class {given!r}", where=where, fix=nearest(given, task.classes))
