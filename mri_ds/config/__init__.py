"""Every scientific choice of a run, as typed plain data; YAML in, YAML out.

Speed (precision, ZeRO, expert parallelism, recomputation, micro-batch) is not here: it lives in `ds_configs/*.json`.
A misspelt key is an error that names it and its nearest match.
"""

from mri_ds.config.augment import AugmentConfig, AugmentProb
from mri_ds.config.curriculum import CurriculumConfig, PaceConfig, StageConfig
from mri_ds.config.data import DataConfig, Intensity, SynthesisConfig
from mri_ds.config.loss import LossConfig, TaskLossConfig
from mri_ds.config.model import SCALES, ModelConfig
from mri_ds.config.override import apply_override
from mri_ds.config.predict import PredictConfig
from mri_ds.config.run import RunConfig, dump_config, load_config, validate, validate_data
from mri_ds.config.strict import Triple
from mri_ds.config.task import SHARE_FLOOR, TaskConfig, TaskKind
from mri_ds.config.training import TrainingConfig
from mri_ds.config.validation import nearest, read_section

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
