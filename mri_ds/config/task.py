"""What is learned: one entry of `tasks:` in the YAML, completed from the shards' manifest."""

from typing import Literal

from pydantic import Field

from mri_ds.config.strict import Strict

TaskKind = Literal["segmentation", "classification", "regression"]

SHARE_FLOOR = 1e-5  # a class's share of a volume is taken to be at least this before its logarithm


class TaskConfig(Strict):
    """One thing to learn. `classes` names every class in order (background first for segmentation); regression has none."""

    kind: TaskKind
    classes: list[str] = []
    unit: str = ""  # of a regression target: "years", "mL"
    class_prior: list[float] = []  # share of each class in training (voxels or subjects); sets the output bias
    class_presence: list[float] = []  # of a segmentation: share of the training subjects that show each class
    log_share_mean: list[float] = []  # of each class, over the training subjects that show it: mean and standard deviation of the
    log_share_std: list[float] = []  # logarithm of its share of the volume; volume heads are told how far from this a subject is
    smallest_part_ml: list[float] = []  # of each class: 5th percentile of its connected parts in training, see data/parts.py
    mean: float = 0.0  # of a regression target over the training subjects
    std: float = Field(default=1.0, gt=0)

    @property
    def num_outputs(self) -> int:
        return len(self.classes) if self.kind != "regression" else 1
