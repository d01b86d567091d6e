"""All choices of a run together; what a person has said stands, and what follows from it is chosen anew.

In: Survey, Hardware, {key: value} that are fixed.  Out: Choices in the order in which they depend on one another.
"""

from collections.abc import Mapping
from typing import Any

from mri_ds.config import SCALES, RunConfig, TaskConfig, nearest, validate
from mri_ds.data.survey import Survey
from mri_ds.errors import InputError
from mri_ds.training.proposal import layout, science
from mri_ds.training.proposal.choice import (
    BALANCE,
    BATCH,
    CLASS_BALANCE,
    PATCH,
    RANKS,
    RECOMPUTE,
    SAID,
    SCALE,
    SPACING,
    SPEED,
    STEPS,
    STRIDE,
    TASKS,
    ZERO,
    Choice,
)  # fmt: skip
from mri_ds.training.proposal.hardware import Hardware

KEYS = (TASKS, SCALE, SPACING, PATCH, STRIDE, CLASS_BALANCE, BALANCE, RANKS, BATCH, STEPS, ZERO, RECOMPUTE)
LEVELS = ("none", "attention", "block", "full")
LEAST_PATCH = 32  # an axis is not made shorter for want of memory


def propose(survey: Survey, hardware: Hardware, fixed: Mapping[str, Any]) -> list[Choice]:
    """Raises InputError for a fixed value that cannot be, naming its key, and where nothing fits into the memory."""
    made: dict[str, Choice] = {}

    def add(choice: Choice | None) -> Any:
        if choice is not None:
            made[choice.key] = Choice(choice.key, fixed[choice.key], SAID) if choice.key in fixed else choice
        return made[choice.key].value if choice is not None else None

    manifest = survey.manifest
    names = science.check_tasks(add(science.tasks_of(survey)), survey)
    made[TASKS] = Choice(TASKS, names, made[TASKS].why)
    tasks = {name: manifest.tasks[name] for name in names}
    scale = add(science.scale_of(survey, hardware))
    if scale not in SCALES:
        raise InputError(
            f"unknown scale {scale!r}; there are {', '.join(SCALES)}", where=SCALE, fix=nearest(str(scale), list(SCALES))
        )
    spacing = add(science.spacing_of(manifest))
    config_of({SPACING: spacing}, {})
    patch = add(science.patch_of(manifest, spacing, hardware))
    config_of({PATCH: patch}, {})
    add(science.stride_of(spacing, patch))
    add(science.class_balance_of(tasks))
    add(science.balance_of(tasks))
    ranks = _count(add(layout.ranks_of(hardware)), RANKS)
    batch = _count(add(science.batch_of(survey, ranks)), BATCH)
    if batch % ranks:
        raise InputError(f"{batch} subjects cannot be divided over {ranks} ranks", where=BATCH, fix=f"give a multiple of {ranks}")
    add(science.steps_of(survey, batch, hardware))
    for choice in _that_fits(made, tasks, survey, hardware, ranks, fixed):
        add(choice)
    _check_speed(fixed)
    return [made[key] for key in KEYS if key in made]


def config_of(values: Mapping[str, Any], tasks: Mapping[str, TaskConfig], *, channels: int = 1) -> RunConfig:
    """The science that the choices say. Raises InputError that names the key of a wrong value."""
    raw: dict[str, Any] = {"tasks": {name: task.model_dump(mode="json") for name, task in tasks.items()}}
    for key, value in values.items():
        if key in SPEED or key in (RANKS, TASKS):
            continue
        section, _, name = key.partition(".")
        raw.setdefault(section, {})[name] = value
    model = raw.setdefault("model", {})
    raw["model"] = {**SCALES[model.get("scale", "small")], "in_channels": channels, **model}
    return validate(raw, where="init")


def _that_fits(
    made: dict[str, Choice],
    tasks: Mapping[str, TaskConfig],
    survey: Survey,
    hardware: Hardware,
    ranks: int,
    fixed: Mapping[str, Any],
) -> list[Choice]:
    """The layout; where none fits, a smaller scale and then a smaller patch, unless a person has fixed them."""
    while True:
        values = {key: choice.value for key, choice in made.items()}
        config = config_of(values, tasks, channels=len(survey.manifest.channels))
        choices, found = layout.layout_of(config, ranks, hardware)
        if found is not None:
            return choices
        scales, patch = list(SCALES), list(made[PATCH].value)
        longest = patch.index(max(patch))
        if SCALE not in fixed and scales.index(values[SCALE]) > scales.index("small"):
            smaller = scales[scales.index(values[SCALE]) - 1]
            made[SCALE] = Choice(SCALE, smaller, f"{values[SCALE]} does not fit into the memory")
        elif PATCH not in fixed and patch[longest] > LEAST_PATCH:
            patch[longest] = max(LEAST_PATCH, patch[longest] - 16)
            made[PATCH] = Choice(PATCH, patch, "what fits into the memory")
            if STRIDE not in fixed:
                made[STRIDE] = science.stride_of(values[SPACING], patch)
        else:
            held = layout.needs(config, ranks, hardware).memory.peak
            what = f"one subject takes {held / 1e9:.1f} GB, and there are {hardware.device.memory / 1e9:.1f}"
            raise InputError(what, where=hardware.name, fix="give a smaller model.scale or data.patch, or another machine")


def _check_speed(fixed: Mapping[str, Any]) -> None:
    if (stage := fixed.get(ZERO, 0)) not in (0, 1, 2, 3):
        raise InputError(f"{stage!r} is no ZeRO stage", where=ZERO, fix="use one of 0, 1, 2, 3")
    if (level := fixed.get(RECOMPUTE, "none")) not in LEVELS:
        raise InputError(
            f"unknown level {level!r}; there are {', '.join(LEVELS)}", where=RECOMPUTE, fix=nearest(str(level), LEVELS)
        )


def _count(value: Any, key: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{value!r} is no count", where=key, fix="give a whole number of at least 1")
    return value
