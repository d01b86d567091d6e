"""calibration.json of a run: what was learned on validation subjects about how far a prediction can be trusted.

    {"coverage": 0.9, "tasks": {"age": {"half_width": 4.1}, "lesion": {"temperature": 1.3, "threshold": 0.2},
                                "tissue": {"temperature": 1.1, "volume_ml": {class: {"relative": 0.2, "offset_ml": 1.0}},
                                           "quality": {class: {"intercept": 0.1, "slope": 0.9}},
                                           "quality_half_width": {class: 0.05}}}}
temperature divides a task's logits; half_width makes value -+ half_width cover the truth with probability `coverage`; the classes
of probability >= threshold cover it likewise, and so do conformal.volume_interval_ml of volume_ml, and quality's line -+
quality_half_width a structure's Dice. Every key may be absent: nothing is said then. Nothing here is fitted, only read.
Each task's "scores" are how wrong the network was on each validation subject, in no order that tells whose they are: from them
`at` finds the bounds of another coverage.
"""

import hashlib
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mri_ds.errors import InputError
from mri_ds.inference import conformal
from mri_ds.inference.quality import Line

FILE = "calibration.json"
Scores = list[float]


class VolumeScale(BaseModel):
    """Of conformal.volume_interval_ml; relative None: too few subjects to promise anything."""

    model_config = ConfigDict(extra="ignore")

    relative: float | None = Field(default=None, ge=0)
    offset_ml: float = Field(default=1.0, gt=0)


class StructureScores(BaseModel):
    """By class; of volumes the error relative to volume and offset, of quality the distance from the line of the others."""

    model_config = ConfigDict(extra="ignore")

    volume_ml: dict[str, Scores] = {}
    quality: dict[str, Scores] = {}


class TaskCalibration(BaseModel):
    """Of one task; keys that only its maker understands are kept out of the way."""

    model_config = ConfigDict(extra="ignore")

    temperature: float = Field(default=1.0, gt=0)
    half_width: float | None = Field(default=None, ge=0)
    threshold: float | None = Field(default=None, ge=0, le=1)
    volume_ml: dict[str, VolumeScale] = {}
    quality: dict[str, Line] = {}
    quality_half_width: dict[str, float | None] = {}
    scores: Scores | StructureScores | None = None

    def at(self, coverage: float) -> "TaskCalibration | None":
        """The same with the bounds of another coverage; None where that is not known."""
        if isinstance(self.scores, list):
            numbers = np.array(self.scores)
            if self.threshold is not None:
                return self.model_copy(update={"threshold": max(0.0, -conformal.quantile(-numbers, coverage))})
            return self.model_copy(update={"half_width": _finite(conformal.quantile(numbers, coverage))})
        if isinstance(self.scores, StructureScores):
            volumes, quality = (
                {name: _finite(conformal.quantile(np.array(one), coverage)) for name, one in scores.items()}
                for scores in (self.scores.volume_ml, self.scores.quality)
            )
            scaled = {name: one.model_copy(update={"relative": volumes.get(name)}) for name, one in self.volume_ml.items()}
            return self.model_copy(update={"volume_ml": scaled, "quality_half_width": quality})
        says_nothing = self.half_width is None and self.threshold is None and not (self.volume_ml or self.quality_half_width)
        return self if says_nothing else None


class _File(BaseModel):
    model_config = ConfigDict(extra="ignore")

    coverage: float = Field(default=0.9, gt=0, lt=1)
    tasks: dict[str, TaskCalibration] = {}


@dataclass(frozen=True)
class Calibration:
    """`digest` tells two calibrations apart; "" where there is none."""

    coverage: float = 0.9
    tasks: dict[str, TaskCalibration] = field(default_factory=dict)
    digest: str = ""

    def of(self, task: str) -> TaskCalibration:
        return self.tasks.get(task, TaskCalibration())

    def at(self, coverage: float | None) -> "Calibration":
        """With the bounds of this coverage, 0..1; None: as it is.

        Raises InputError for another number, and where the file has the bounds of its own coverage alone.
        """
        if coverage is None or (self.digest and coverage == self.coverage):
            return self
        if not 0 < coverage < 1:
            raise InputError(f"coverage {coverage}", fix="choose a number between 0 and 1, as 0.9")
        fix = "calibrate the run first: mri-ds calibrate --checkpoint RUN --data SHARDS"
        if not self.digest:
            raise InputError("the run has no calibration.json: no coverage can be promised", fix=fix)
        found = {name: task.at(coverage) for name, task in self.tasks.items()}
        tasks = {name: task for name, task in found.items() if task is not None}
        if len(tasks) < len(found):
            raise InputError(f"calibration.json knows a coverage of {self.coverage:g} alone", fix=fix)
        return replace(self, coverage=coverage, tasks=tasks, digest=f"{self.digest}-{coverage:g}")


def read_calibration(run_dir: Path) -> Calibration:
    """A run without the file has none. Raises InputError for one that cannot be understood."""
    path = run_dir / FILE
    if not path.is_file():
        return Calibration()
    content = path.read_bytes()
    try:
        told = _File.model_validate_json(content)
    except ValidationError as err:
        first = err.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{key}: {first['msg']}", where=path, fix="make it again, or remove it") from None
    return Calibration(told.coverage, told.tasks, hashlib.sha256(content).hexdigest()[:16])


def _finite(bound: float) -> float | None:
    return bound if math.isfinite(bound) else None
