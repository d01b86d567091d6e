"""From easy to hard: which subjects, at which size and resolution, with which tasks and augmentation, at which step.

In: levels in percent (who sets their pace is not known here: see training/pacing.py), difficulties from the index or from the
losses seen so far.  Out: a Plan, and the loader's Order and DataConfig for it.
A run is a row of stretches. Within a stretch everything is a pure function of its Plan and of positions, so batches stay the same
for any number of ranks and workers; a new Plan is made only at steps that the configuration fixes, from a state that every rank
has alike and every checkpoint keeps.
Source: Bengio et al. 2009 (curriculum learning); Kumar et al. 2010 (self-paced learning) for difficulty by loss.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mri_ds.config import CurriculumConfig, DataConfig, StageConfig, nearest, validate_data
from mri_ds.data.index import ShardDataset
from mri_ds.data.order import Order, Slot
from mri_ds.errors import InputError

LOSS = "loss"
SMOOTHING = 0.3  # weight of the newest loss of a subject in its running loss
EDGE_MULTIPLE, MIN_EDGE = 8, 16  # voxels of a patch that is smaller than its final size
POOL = 0x9001  # sets the dice of stretches apart from one another


@dataclass(frozen=True)
class Plan:
    """What is shown from `first_step` (steps done before it) on. pool: subjects, easiest first; () for all of them.

    crop: percent of the patch's edges; resolution: percent of the final number of voxels per mm.
    """

    first_step: int
    stage: int
    pool: tuple[int, ...] = ()
    crop: int = 100
    resolution: int = 100

    def is_like(self, other: "Plan") -> bool:
        """Whether it shows the same, whenever it began."""
        return asdict(self) | {"first_step": 0} == asdict(other) | {"first_step": 0}


class Curriculum:
    """Difficulties of the subjects, and the plans that follow from them. The only state that a stretch leaves behind."""

    def __init__(self, config: CurriculumConfig, dataset: ShardDataset, num_samples: int) -> None:
        """`num_samples`: places of an epoch. Raises InputError where the shards do not hold the value that tells difficulty."""
        self.config = config
        self.stages = config.stages or [StageConfig()]
        self.fixed = None if config.difficulty == LOSS else metadata_difficulty(config.difficulty, dataset, num_samples)
        self.losses = np.full(num_samples, np.nan)
        self.was_shown = np.zeros(num_samples, dtype=bool)
        self.plan = Plan(0, 0)

    def turn(self, step: int, levels: Mapping[str, int]) -> Plan:
        """The plan after `step` steps, which is the last one where nothing in it changes. levels: percent by name."""
        plan = Plan(
            first_step=step,
            stage=max(number for number, stage in enumerate(self.stages) if stage.from_step <= step),
            pool=self._pool(levels.get("subjects", 100)),
            crop=levels.get("crop", 100),
            resolution=levels.get("resolution", 100),
        )
        if not plan.is_like(self.plan):
            self.plan = plan
        return self.plan

    def may_turn(self, step: int) -> bool:
        """Whether a new plan may begin after `step` steps."""
        return step % self.config.every == 0 or any(stage.from_step == step for stage in self.stages)

    def learn(self, subjects: Sequence[int], losses: Sequence[float]) -> None:
        """Takes in the losses of one step's subjects; one that is not finite (no label) says only that the subject was shown."""
        self.was_shown[list(subjects)] = True
        for subject, loss in zip(subjects, losses, strict=True):
            if math.isfinite(loss):
                known = self.losses[subject]
                self.losses[subject] = loss if math.isnan(known) else known + SMOOTHING * (loss - known)

    def state(self) -> dict[str, Any]:
        """Plain numbers and lists: what a checkpoint keeps."""
        return {"plan": asdict(self.plan), "losses": self.losses.tolist(), "was_shown": self.was_shown.tolist()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Raises InputError for a state of another number of subjects."""
        if len(state["losses"]) != len(self.losses):
            what = f"the checkpoint's curriculum has {len(state['losses'])} subjects, the data {len(self.losses)}"
            raise InputError(what, fix="train on the same data, or in a new run folder")
        self.losses = np.array(state["losses"], dtype=np.float64)
        self.was_shown = np.array(state["was_shown"], dtype=bool)
        self.plan = Plan(**{**state["plan"], "pool": tuple(state["plan"]["pool"])})

    def _pool(self, percent: int) -> tuple[int, ...]:
        """The easiest `percent` of the subjects, one at least; () for all, and by loss until each was shown. NaN is hardest."""
        difficulty = self.losses if self.fixed is None else self.fixed
        if percent >= 100 or (self.fixed is None and not self.was_shown.all()):
            return ()
        return tuple(np.argsort(difficulty, kind="stable")[: max(1, math.ceil(len(difficulty) * percent / 100))].tolist())


class PoolOrder(Order):
    """An Order of some of the subjects, from a step on: each of them once in an epoch of its own, as long as they are many."""

    def __init__(self, order: Order, plan: Plan) -> None:
        seed = int(np.random.SeedSequence([order.seed, plan.first_step, POOL]).generate_state(1)[0])
        super().__init__(shard_sizes=[len(plan.pool)], global_batch=order.global_batch, seed=seed)
        self.pool, self.first_step = plan.pool, plan.first_step

    def slot(self, position: int) -> Slot:
        slot = super().slot(position - self.first_step * self.global_batch)
        return Slot(slot.epoch, slot.place, self.pool[slot.subject], slot.is_padding)

    def real(self, step: int) -> list[int]:
        return [self.pool[i] for i in super().real(step - self.first_step)]


def order_of(plan: Plan, order: Order) -> Order:
    """The order in which `plan` shows subjects: the run's own where it shows all."""
    return PoolOrder(order, plan) if plan.pool else order


def data_of(plan: Plan, stages: Sequence[StageConfig], data: DataConfig) -> DataConfig:
    """The run's DataConfig (no "auto" left) with the stage's changes, its patch and voxels as large as the levels say.

    A lower resolution sees as much of the subject with fewer voxels; a smaller crop sees less. Edges that change are multiples of
    8 voxels, at least 16.
    """
    changed = validate_data({**data.model_dump(mode="json"), **(stages[plan.stage].data if stages else {})})
    assert changed.spacing_mm != "auto" and changed.patch != "auto"
    share = plan.crop * plan.resolution / 10_000
    d, h, w = (_edge(n, share) for n in changed.patch)
    x, y, z = (s / (plan.resolution / 100) for s in changed.spacing_mm)
    return changed.model_copy(update={"patch": (d, h, w), "spacing_mm": (x, y, z)})


def metadata_difficulty(name: str, dataset: ShardDataset, num_samples: int) -> np.ndarray:
    """A scalar label of the shards as difficulty, low values first; "-name" for high ones first. (num_samples,) float64.

    Subjects without the label, and synthetic places, are the hardest. Raises InputError where no subject has it.
    """
    task, sign = name.removeprefix("-"), -1.0 if name.startswith("-") else 1.0
    known = [name for name, task in dataset.tasks.items() if task.kind != "segmentation"]
    if task not in known:
        what = f"curriculum.difficulty is {name!r}, which is no scalar label of the shards"
        raise InputError(what, where=dataset.folder, fix=nearest(task, [LOSS, *known]))
    values = [dataset.value(i, task) for i in range(len(dataset))]
    if all(value is None for value in values):
        raise InputError(f"no subject has a value of {task!r}", where=dataset.folder, fix="choose another curriculum.difficulty")
    out = np.full(num_samples, np.inf)
    out[: len(values)] = [np.inf if value is None else sign * value for value in values]
    return out


def _edge(full: int, share: float) -> int:
    if share == 1:
        return full
    return min(full, max(MIN_EDGE, round(full * share / EDGE_MULTIPLE) * EDGE_MULTIPLE))
