"""The batches of a run: from one loader, or with a curriculum from one loader for each stretch.

In: the configuration, the split, its order.  Out: micro-batches; and what a checkpoint must keep for the run to go on exactly.
How fast a level rises is DeepSpeed's CurriculumScheduler's; what the levels mean is data/curriculum.py's.
Every rank decides alike: levels are functions of the step, and the losses of a step are shared by all ranks before they count.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mri_ds.config import CurriculumConfig, PaceConfig, RunConfig, nearest
from mri_ds.data.curriculum import LOSS, Curriculum, Plan, data_of, order_of
from mri_ds.data.index import ShardDataset
from mri_ds.data.loader import make_loader
from mri_ds.data.order import Order
from mri_ds.errors import InputError
from mri_ds.sample import Batch
from mri_ds.training import distributed


class Pace:
    """Levels in percent by step, each from a CurriculumScheduler of its own.

    >>> Pace(CurriculumConfig(crop=PaceConfig(start=50, steps=100, by=10))).levels(60)  # doctest: +SKIP
    {'crop': 80}
    """

    def __init__(self, config: CurriculumConfig) -> None:
        sections = {"subjects": config.subjects, "crop": config.crop, "resolution": config.resolution}
        self.schedulers = {name: _scheduler(pace) for name, pace in sections.items() if pace is not None}

    def levels(self, step: int) -> dict[str, int]:
        """After `step` steps."""
        return {name: int(scheduler.get_difficulty(step)) for name, scheduler in self.schedulers.items()}


class Course:
    """Where the batches of a run come from, and with a curriculum which ones they are."""

    def __init__(self, config: RunConfig, dataset: ShardDataset, order: Order, *, micro_batch: int) -> None:
        """Raises InputError for a stage's task that is not trained, and for a difficulty that the shards do not tell."""
        self.config, self.dataset, self.order, self.micro_batch = config, dataset, order, micro_batch
        self.curriculum: Curriculum | None = None
        if config.curriculum is not None:
            _check_tasks(config)
            self.curriculum = Curriculum(config.curriculum, dataset, order.num_samples)
            self.pace = Pace(config.curriculum)
        self.by_loss = config.curriculum is not None and config.curriculum.difficulty == LOSS and bool(config.curriculum.subjects)
        self._plan: Plan | None = None
        self._batches: Any = None
        self._heard: list[Tensor] = []

    def batches(self, step: int) -> Iterator[Batch]:
        """The micro-batches that follow on `step` steps; to be asked for before every step, as the loader may be another."""
        if self.curriculum is None:
            if self._batches is None:
                self._batches = self._loader(step, Plan(0, 0))
            return self._batches  # type: ignore[no-any-return]
        plan = self.curriculum.plan
        if self.curriculum.may_turn(step):
            plan = self.curriculum.turn(step, self.pace.levels(step))
        if plan is not self._plan:
            if self._batches is not None:
                self._batches.close()  # and its processes with it
            self._plan, self._batches = plan, self._loader(step, plan)
        return self._batches  # type: ignore[no-any-return]

    def hear(self, subject_losses: Tensor) -> None:
        """The losses (B,) of one micro-batch of this rank, NaN for a subject without any label."""
        if self.by_loss:
            self._heard.append(subject_losses)

    def end_step(self, step: int) -> None:
        """After the weights moved for the `step`-th time. Every rank must call it."""
        if self.curriculum is None or not self.by_loss:
            return
        losses = distributed.gather(torch.stack(self._heard).double())  # (ranks, micro-batches, B)
        self._heard = []
        order, first = order_of(self.curriculum.plan, self.order), (step - 1) * self.order.global_batch
        slots = [order.slot(first + number) for number in range(self.order.global_batch)]
        values = losses.transpose(0, 1).flatten().tolist()  # by position: micro-batch, then rank, then place
        real = [(slot.subject, value) for slot, value in zip(slots, values, strict=True) if not slot.is_padding]
        self.curriculum.learn([subject for subject, _ in real], [value for _, value in real])

    def scalars(self, step: int) -> dict[str, float]:
        """For the log: the levels that hold, and how many subjects are shown."""
        if self.curriculum is None:
            return {}
        plan = self.curriculum.plan
        shown = len(plan.pool) or self.order.num_samples
        levels = {"subjects": shown, "crop": plan.crop, "resolution": plan.resolution, "stage": plan.stage}
        return {f"curriculum/{name}": float(value) for name, value in levels.items()}

    def state(self, step: int) -> dict[str, Any]:
        """After `step` steps: what a checkpoint keeps of the data."""
        told = {"curriculum": self.curriculum.state()} if self.curriculum is not None else {}
        return {**self.order.state(step), **told}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Raises InputError where the data is not what it was when `state` was kept."""
        self.order.check(state)
        if self.curriculum is not None and "curriculum" in state:
            self.curriculum.load_state(state["curriculum"])

    def _loader(self, step: int, plan: Plan) -> Iterator[Batch]:
        training, curriculum = self.config.training, self.config.curriculum
        stages = curriculum.stages if curriculum is not None else []
        return make_loader(
            self.dataset,
            data_of(plan, stages, self.config.data) if curriculum is not None else self.config.data,
            self.config.tasks,
            seed=training.seed,
            global_batch=training.global_batch,
            micro_batch=self.micro_batch,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            start_step=step,
            order=order_of(plan, self.order),
            shown_tasks=(stages[plan.stage].tasks or None) if stages else None,
        )


def _scheduler(pace: PaceConfig) -> Any:
    from deepspeed.runtime.data_pipeline.curriculum_scheduler import CurriculumScheduler

    steps = {"total_curriculum_step": pace.steps, "difficulty_step": pace.by, "root_degree": pace.root}
    settings = {"min_difficulty": pace.start, "max_difficulty": pace.end, "schedule_type": "fixed_root", "schedule_config": steps}
    return CurriculumScheduler(settings)


def _check_tasks(config: RunConfig) -> None:
    assert config.curriculum is not None
    for number, stage in enumerate(config.curriculum.stages):
        for task in stage.tasks:
            if task not in config.tasks:
                what = f"curriculum.stages.{number} learns task {task!r}, which is not trained"
                raise InputError(what, fix=nearest(task, list(config.tasks)))
