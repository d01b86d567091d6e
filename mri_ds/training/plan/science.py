"""The science of a run that has no data yet: what `auto` becomes, and tasks to plan with."""

from collections.abc import Sequence
from pathlib import Path

from mri_ds.config import RunConfig, TaskConfig, load_config

PATCH = 96  # data.preprocess.propose makes none larger
USUAL_TASKS = {
    "tissue": TaskConfig(kind="segmentation", classes=[f"class{i}" for i in range(7)]),
    "lesion": TaskConfig(kind="classification", classes=["none", "few", "many"]),
    "age": TaskConfig(kind="regression", unit="years"),
}


def science_of(scale: str | None, *, config_path: Path | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of `scale`, with the tasks of `mri-ds info` where it names none and a patch where it has none."""
    return science_with_tasks(load_config(config_path, overrides=overrides, scale=scale))


def science_with_tasks(config: RunConfig) -> RunConfig:
    """`config` as it may be before any data are known -> one that a network can be built of."""
    config = config.model_copy(deep=True)
    config.tasks = config.tasks or dict(USUAL_TASKS)
    if config.data.patch == "auto":
        config.data.patch = (PATCH, PATCH, PATCH)
    return config
