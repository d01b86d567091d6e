"""From easy to hard: how subjects, crops, resolution and tasks change as training goes on."""

from typing import Any

from pydantic import Field, model_validator

from mri_ds.config.data import ORDER_KEYS, DataConfig
from mri_ds.config.strict import Strict
from mri_ds.config.validation import read_section


class PaceConfig(Strict):
    """How a level rises from `start` to `end` percent over `steps` steps, in jumps of `by`: DeepSpeed's CurriculumScheduler."""

    start: int = Field(ge=1, le=100)
    end: int = Field(default=100, ge=1, le=100)
    steps: int = Field(ge=1)
    by: int = Field(default=5, ge=1, le=100)
    root: int = Field(default=1, ge=1)  # 1 rises evenly, 2 with the square root of the steps: fast at first

    @model_validator(mode="after")
    def _rises(self) -> "PaceConfig":
        if self.end < self.start:
            raise ValueError(f"end {self.end} is under start {self.start}: a curriculum goes from easy to hard")
        if self.start % self.by or self.end % self.by:
            raise ValueError(f"start {self.start} and end {self.end} must be multiples of by {self.by}")
        return self


class StageConfig(Strict):
    """What is different from `from_step` on: `tasks` are those that are learned (none: all), `data` replaces keys of `data:`."""

    from_step: int = Field(default=0, ge=0)
    tasks: list[str] = []
    data: dict[str, Any] = {}

    @model_validator(mode="after")
    def _keeps_the_order(self) -> "StageConfig":
        if fixed := [key for key in self.data if key in ORDER_KEYS]:
            raise ValueError(f"data.{fixed[0]} cannot change within a run")
        told = read_section(DataConfig, self.data, where="data").model_dump()
        if auto := [key for key in self.data if told[key] == "auto"]:
            raise ValueError(f"data.{auto[0]} cannot be auto in a stage: give its value")
        return self


class CurriculumConfig(Strict):
    """From easy to hard. Every section is optional: subjects (easiest first), crop, resolution, stages."""

    difficulty: str = "loss"  # of a subject: its running loss, or a scalar label of the shards ("-age": high values are easy)
    every: int = Field(default=50, ge=1)  # steps between changes; each starts the loader anew, which costs seconds
    subjects: PaceConfig | None = None
    crop: PaceConfig | None = None
    resolution: PaceConfig | None = None
    stages: list[StageConfig] = []

    @model_validator(mode="after")
    def _starts_somewhere(self) -> "CurriculumConfig":
        steps = [stage.from_step for stage in self.stages]
        if steps and (steps[0] != 0 or sorted(set(steps)) != steps):
            raise ValueError(f"stages begin at steps {steps}: the first must begin at 0, each other one later")
        return self
