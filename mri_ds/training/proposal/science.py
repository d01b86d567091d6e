"""The science of a run: what to learn, on which grid, with which network, for how long.

In: a Survey, Hardware.  Out: Choices.  Lengths in mm, patches in voxels of the network's grid.
"""

import math
from collections.abc import Mapping
from typing import Any

from mri_ds.config import SCALES, TaskConfig, nearest
from mri_ds.data.manifest import Manifest
from mri_ds.data.preprocess import grid_shape
from mri_ds.data.survey import Survey
from mri_ds.errors import InputError
from mri_ds.training.proposal.choice import (
    BALANCE,
    BATCH,
    CLASS_BALANCE,
    PATCH,
    SCALE,
    SPACING,
    STEPS,
    STRIDE,
    TASKS,
    Choice,
)  # fmt: skip
from mri_ds.training.proposal.hardware import Hardware

ENOUGH_FOR = {"small": 0, "base": 1000, "large": 5000, "xl": 20000}  # subjects to train on, from which a scale is worth its cost
MAX_PATCH, MAX_CPU_PATCH = 96, 64
THICK = 1.5  # a voxel edge so many times the shortest one is cut into tokens half as long
MIN_TOKENS = 4  # of a patch along an axis
PASSES, LEAST_STEPS, MOST_STEPS, CPU_STEPS = 100, 400, 20000, 1000
USUAL_BATCH = 4
EVEN, RARE = 4.0, 400.0  # most frequent class over the rarest
SKEWED = 3.0  # the same of a classification's subjects


def tasks_of(survey: Survey) -> Choice:
    """All that the data can teach."""
    told = ", ".join(f"{name}: {_task(task)}" for name, task in survey.manifest.tasks.items())
    return Choice(TASKS, list(survey.manifest.tasks), f"what the labels can teach ({told}); one network learns them all")


def check_tasks(names: Any, survey: Survey) -> list[str]:
    """A list of tasks as a person gives it. Raises InputError for one that the data has not."""
    known = list(survey.manifest.tasks)
    given = [part.strip() for part in names.split(",")] if isinstance(names, str) else names
    if not isinstance(given, list) or not given:
        raise InputError(f"{TASKS} = {names!r} is no list of tasks", fix=f"give some of {', '.join(known)}")
    for name in given:
        if name not in known:
            raise InputError(f"there is no task {name!r}", where=TASKS, fix=nearest(str(name), known))
    return [str(name) for name in given]


def scale_of(survey: Survey, hardware: Hardware) -> Choice:
    worth = [name for name, least in ENOUGH_FOR.items() if survey.num_train >= least][-1]
    if not hardware.num_gpus and worth != "small":
        return Choice(
            SCALE, "small", f"a CPU trains nothing larger in bearable time; {survey.num_train} subjects would do for {worth}"
        )
    following = list(ENOUGH_FOR)[min(len(ENOUGH_FOR) - 1, list(ENOUGH_FOR).index(worth) + 1)]
    more = f"; {following} pays from about {ENOUGH_FOR[following]:,} on" if following != worth else ""
    return Choice(SCALE, worth, f"{survey.num_train} subjects to train on{more}")


def spacing_of(manifest: Manifest) -> Choice:
    spacing = [round(edge, 4) for edge in manifest.fingerprint.median_spacing_mm]
    ratio = max(spacing) / min(spacing)
    shape = f"; voxels are {ratio:.1f} times as long along one axis, and stay so" if ratio >= THICK else ""
    return Choice(SPACING, spacing, f"the median voxel: most images stay as they were measured{shape}")


def patch_of(manifest: Manifest, spacing: Any, hardware: Hardware) -> Choice:
    """No longer along any axis than the median volume on the network's grid."""
    volume = grid_shape(manifest.fingerprint.median_shape, manifest.fingerprint.median_spacing_mm, spacing)
    most = MAX_PATCH if hardware.num_gpus else MAX_CPU_PATCH
    patch = [min(most, n) for n in volume]
    told = " x ".join(map(str, volume))
    if patch == list(volume):
        return Choice(PATCH, patch, "the whole median volume at once, and not more")
    on = "" if hardware.num_gpus else " on a CPU"
    return Choice(PATCH, patch, f"of a median volume of {told}, at most {most} an axis{on}: windows cover the rest in prediction")


def stride_of(spacing: Any, patch: Any) -> Choice:
    """Tokens of 8 voxels an axis; of 4 along thick slices and where a patch is short."""
    stride = [4 if edge >= THICK * min(spacing) or n < MIN_TOKENS * 8 else 8 for edge, n in zip(spacing, patch, strict=True)]
    if stride == [8, 8, 8]:
        return Choice(STRIDE, stride, "voxels from one token to the next: as the network was tuned")
    thick = any(edge >= THICK * min(spacing) for edge in spacing)
    why = "along thick slices half as many voxels make a token of about even mm" if thick else ""
    short = any(n < MIN_TOKENS * 8 for n in patch)
    also = f"a patch keeps {MIN_TOKENS} tokens or more along short axes" if short else ""
    return Choice(STRIDE, stride, "; ".join(filter(None, (why, also))))


def batch_of(survey: Survey, ranks: int) -> Choice:
    """The usual one, as far as the ranks share it and there are as many subjects."""
    batch = ranks * math.ceil(USUAL_BATCH / ranks)
    if batch > survey.num_train:
        batch = max(1, survey.num_train // ranks * ranks) if survey.num_train >= ranks else ranks
        return Choice(BATCH, batch, f"there are only {survey.num_train} subjects to train on")
    each = f", {batch // ranks} for each of {ranks} ranks" if ranks > 1 else ""
    return Choice(BATCH, batch, f"subjects of an update{each}; how many go through at once is seen at the start")


def steps_of(survey: Survey, batch: int, hardware: Hardware) -> Choice:
    wanted = PASSES * survey.num_train / batch
    most = MOST_STEPS if hardware.num_gpus else CPU_STEPS
    steps = int(min(most, max(LEAST_STEPS, round(wanted, -2))))
    passes = steps * batch / survey.num_train
    limit = "; more would help, where a CPU had the time" if not hardware.num_gpus and wanted > most else ""
    return Choice(STEPS, steps, f"each subject is shown about {passes:.0f} times{limit}")


def class_balance_of(tasks: Mapping[str, TaskConfig]) -> Choice | None:
    """From the voxels of the most frequent class over those of the rarest one."""
    shares = {name: [p for p in task.class_prior if p > 0] for name, task in tasks.items() if task.kind == "segmentation"}
    ratios = {name: max(prior) / min(prior) for name, prior in shares.items() if prior}
    if not ratios:
        return None
    name = max(ratios, key=lambda task: ratios[task])
    ratio = ratios[name]
    power = 0.0 if ratio < EVEN else 0.25 if ratio < RARE else 0.5
    told = f"the rarest class of {name} has 1/{ratio:,.0f} of the voxels of the most frequent one"
    how = "no weights are needed" if not power else f"its voxels weigh {ratio**power:.1f} times as much in the cross-entropy"
    return Choice(CLASS_BALANCE, power, f"{told}: {how}")


def balance_of(tasks: Mapping[str, TaskConfig]) -> Choice:
    """Subjects of rare classes more often, where one classification is skewed most."""
    priors = {name: task.class_prior for name, task in tasks.items() if task.kind == "classification" and task.class_prior}
    ratios = {name: max(prior) / min(prior) for name, prior in priors.items() if min(prior) > 0}
    name = max(ratios, key=lambda task: ratios[task], default="")
    if not name or ratios[name] < SKEWED:
        return Choice(BALANCE, "none", "every subject is shown equally often" + (": classes are even enough" if name else ""))
    return Choice(BALANCE, name, f"a class of {name} has {ratios[name]:.1f} times the subjects of another: classes take turns")


def _task(task: TaskConfig) -> str:
    return f"regression in {task.unit}" if task.kind == "regression" and task.unit else task.kind


assert set(ENOUGH_FOR) < set(SCALES)
