"""calibration.json of a run: what was learned on validation subjects about how far a prediction can be trusted.

    {"coverage": 0.9, "tasks": {"age": {"half_width": 4.1}, "lesion": {"temperature": 1.3, "threshold": 0.2},
                                "tissue": {"temperature": 1.1}}}
temperature divides a task's logits; half_width makes value -+ half_width cover the truth with probability `coverage`; the classes
of probability >= threshold cover it likewise. Every key may be absent: nothing is said then. Nothing here is fitted, only read.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mri_ds.errors import InputError

FILE = "calibration.json"


class TaskCalibration(BaseModel):
    """Of one task; keys that only its maker understands are kept out of the way."""

    model_config = ConfigDict(extra="ignore")

    temperature: float = Field(default=1.0, gt=0)
    half_width: float | None = Field(default=None, ge=0)
    threshold: float | None = Field(default=None, ge=0, le=1)


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
