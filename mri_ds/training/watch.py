"""Everything that a run tells while it trains, and when: to the tracker, and to the person in front of rank 0.

In: what each step gave.  Out: scalars every `log_every` steps, pictures every `image_every`, figures of held-out subjects (and
scalars with them) every `validate_every`, and at the end the hyper-parameters beside the final figures. Every rank calls every
method; rank 0 writes.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mri_ds.config import RunConfig
from mri_ds.data.index import ShardDataset
from mri_ds.sample import Batch
from mri_ds.training import distributed
from mri_ds.training.communication import CommunicationTimer
from mri_ds.training.expert_load import ExpertLoad
from mri_ds.training.heat_map import draw_heat_map
from mri_ds.training.nonfinite import StepResult
from mri_ds.training.probe import draw_probe
from mri_ds.training.progress import Progress
from mri_ds.training.tracker import Tracker
from mri_ds.training.validation import Validation
from mri_ds.training.window import Window


class Watch:
    """Of one run; `start_step` is the last step that stands."""

    def __init__(
        self, engine: Any, config: RunConfig, resolved: dict[str, Any], dataset: ShardDataset, run_dir: Path, *, start_step: int
    ) -> None:
        self.engine, self.config, self.resolved = engine, config, resolved
        training, is_first = config.training, distributed.rank() == 0
        if not is_first:
            logging.basicConfig(level=logging.WARNING, format=f"rank {distributed.rank()}: %(message)s")
        self.tracker = Tracker(run_dir, is_first, start_step=start_step, wandb_project=training.wandb)
        self.progress = Progress(training.steps, start_step, is_shown=is_first)
        self.validation = Validation(dataset, config, num_subjects=training.validate_subjects if training.validate_every else 0)
        self.window = Window(config.model.token_stride)
        self.window.communication = CommunicationTimer()
        self.scalars: dict[str, float] = {}  # the latest of each

    def say(self, text: str) -> None:
        self.progress.say(text)

    def tell(
        self,
        step: int,
        result: StepResult,
        losses: Mapping[str, float],
        load: ExpertLoad,
        extra: Mapping[str, float],
        batch: Batch,
    ) -> None:
        """After step `step`: this rank's losses, the experts' load, further scalars, the step's last micro-batch."""
        training = self.config.training
        if result.is_skipped:
            self.say(f"step {step} moved nothing: {result.reason}. {result.whom}")
        is_validated = self._is_validated(step)
        if is_validated or self._is_due(step, training.log_every):
            scalars = self.window.scalars(self.engine, self.config, load.scalars(), losses) | dict(extra)
            scalars["nonfinite/skipped_steps"] = float(self.engine.skipped_steps)
            self.progress.update(step, scalars)
            for line in load.warnings(rate=training.balance_rate):
                self.say(line)
            if is_validated:
                with self.window.aside():
                    figures, picture = self.validation.run(self.engine.module.net)
                scalars |= figures
                if picture is not None:
                    self.tracker.image(step, "validation/slice", picture)
            self.tracker.scalars(step, scalars)
            self.scalars |= scalars
        if self._is_due(step, training.image_every):
            with self.window.aside():
                self._draw(step, batch, load)

    def close(self) -> None:
        """At the run's end; the hyper-parameters are told once there are figures to set them beside."""
        final = {name: value for name, value in self.scalars.items() if name == "loss" or name.startswith("validation/")}
        if final:
            self.tracker.hyper_parameters(_chosen(self.config, self.resolved), final)
        self.tracker.close()
        self.progress.close()

    def _draw(self, step: int, batch: Batch, load: ExpertLoad) -> None:
        picture = draw_probe(self.engine.module.net, batch)
        if picture is not None:
            self.tracker.image(step, "prediction", picture)
        if load.layers and distributed.rank() == 0:
            table = load.num_experts * load.shares.double().numpy()  # of the window that was told last
            rows = [f"layer{index}" for index in range(len(table))]
            self.tracker.image(step, "expert_load", draw_heat_map(table, rows=rows, title=f"expert load, step {step}"))

    def _is_validated(self, step: int) -> bool:
        """Also with every checkpoint, where the best is kept by a figure of validation."""
        training = self.config.training
        if not training.validate_every:
            return False
        is_judge = training.keep_best.removeprefix("-").startswith("validation/")
        return self._is_due(step, training.validate_every) or (is_judge and step % training.checkpoint_every == 0)

    def _is_due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.config.training.steps


def _chosen(config: RunConfig, resolved: dict[str, Any]) -> dict[str, Any]:
    """What people compare runs by: TensorBoard shows a column for each."""
    half = [name for name in ("bf16", "fp16") if resolved[name]["enabled"]]
    return {
        **config.model_dump(mode="json", include={"model", "loss", "training"}),
        "precision": half[0] if half else "fp32",
        "zero_stage": resolved["zero_optimization"]["stage"],
        "expert_parallel": resolved["expert_parallel"].get("autoep_size", 1),
        "micro_batch": resolved["train_micro_batch_size_per_gpu"],
        "ranks": distributed.world_size(),
    }
