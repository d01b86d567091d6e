"""What a label map leads one to expect: the Dice of each structure, and between which volumes its true one lies.

Axes: K classes.
In: sums of probabilities over a subject's own grid, the volumes found, and what `calibration.json` says of the task.  Out: by
class; nothing is said of what was not calibrated. quality.py and conformal.py say what the numbers mean.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mri_ds.config import TaskConfig
from mri_ds.inference.calibration import TaskCalibration
from mri_ds.inference.conformal import volume_interval_ml
from mri_ds.inference.quality import soft_dice_of_sums

Interval = tuple[float, float]


@dataclass(frozen=True)
class Expected:
    """Dice 0..1 of one structure; the interval holds it with the calibration's coverage. None: of too few subjects."""

    dice: float
    interval: Interval | None = None


def expected_dice(
    sums: np.ndarray, task: TaskConfig, calibration: TaskCalibration, volumes_ml: Mapping[str, float]
) -> dict[str, Expected]:
    """By class, where a line was fitted. sums (3, K) as of native.Map, of the labels before any part was dropped.

    A class that is not among the final labels is expected at 0 where every training subject had it, and else has no Dice.
    """
    found: dict[str, Expected] = {}
    always = _is_always_present(task)[1:]
    for name, soft, is_always in zip(task.classes[1:], structure_scores(sums, task), always, strict=True):
        if name not in calibration.quality:
            continue
        if not volumes_ml[name]:
            found |= {name: Expected(0.0, (0.0, 0.0))} if is_always else {}
        elif not math.isnan(soft):
            dice, half = calibration.quality[name].at(soft), calibration.quality_half_width.get(name)
            found[name] = Expected(dice, None if half is None else (max(0.0, dice - half), min(1.0, dice + half)))
    return found


def structure_scores(sums: np.ndarray, task: TaskConfig) -> list[float]:
    """The soft Dice of each class but the background."""
    return soft_dice_of_sums(sums, is_always_present=_is_always_present(task))


def volume_intervals(volumes_ml: Mapping[str, float], calibration: TaskCalibration) -> dict[str, Interval]:
    """Low and high mL by class."""
    scales = {name: scale for name, scale in calibration.volume_ml.items() if name in volumes_ml and scale.relative is not None}
    return {name: volume_interval_ml(volumes_ml[name], one.relative or 0.0, one.offset_ml) for name, one in scales.items()}


def _is_always_present(task: TaskConfig) -> Sequence[bool]:
    return [share == 1 for share in task.class_presence] or [False] * len(task.classes)
