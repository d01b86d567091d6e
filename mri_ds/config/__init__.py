"""Every scientific choice of a run, as typed plain data; YAML in, YAML out.

Speed (precision, ZeRO, expert parallelism, recomputation, micro-batch) is not here: it lives in `ds_configs/*.json`.
A misspelt key is an error that names it and its nearest match. What is here is imported when it is first used: the typed sections
take a fifth of a second, which `mri-ds --help` does without.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mri_ds.config.augment import AugmentConfig, AugmentProb
    from mri_ds.config.curriculum import CurriculumConfig, PaceConfig, StageConfig
    from mri_ds.config.data import DataConfig, Intensity, SynthesisConfig
    from mri_ds.config.loss import LossConfig, TaskLossConfig
    from mri_ds.config.model import ModelConfig
    from mri_ds.config.override import apply_override
    from mri_ds.config.predict import PredictConfig
    from mri_ds.config.run import RunConfig, dump_config, load_config, validate, validate_data
    from mri_ds.config.scales import SCALES
    from mri_ds.config.spelling import nearest
    from mri_ds.config.strict import Triple
    from mri_ds.config.task import SHARE_FLOOR, TaskConfig, TaskKind
    from mri_ds.config.training import TrainingConfig
    from mri_ds.config.validation import read_section

_HOMES = {
    "augment": ("AugmentConfig", "AugmentProb"),
    "curriculum": ("CurriculumConfig", "PaceConfig", "StageConfig"),
    "data": ("DataConfig", "Intensity", "SynthesisConfig"),
    "loss": ("LossConfig", "TaskLossConfig"),
    "model": ("ModelConfig",),
    "override": ("apply_override",),
    "predict": ("PredictConfig",),
    "run": ("RunConfig", "dump_config", "load_config", "validate", "validate_data"),
    "scales": ("SCALES",),
    "spelling": ("nearest",),
    "strict": ("Triple",),
    "task": ("SHARE_FLOOR", "TaskConfig", "TaskKind"),
    "training": ("TrainingConfig",),
    "validation": ("read_section",),
}

__all__ = [
    "SCALES",
    "SHARE_FLOOR",
    "AugmentConfig",
    "AugmentProb",
    "CurriculumConfig",
    "DataConfig",
    "Intensity",
    "LossConfig",
    "ModelConfig",
    "PaceConfig",
    "PredictConfig",
    "RunConfig",
    "StageConfig",
    "SynthesisConfig",
    "TaskConfig",
    "TaskKind",
    "TaskLossConfig",
    "TrainingConfig",
    "Triple",
    "apply_override",
    "dump_config",
    "load_config",
    "nearest",
    "read_section",
    "validate",
    "validate_data",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
