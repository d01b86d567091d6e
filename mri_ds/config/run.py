"""One run's whole science: its sections together, YAML in, YAML out, overrides from the command line."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mri_ds.config.curriculum import CurriculumConfig
from mri_ds.config.data import DataConfig
from mri_ds.config.loss import LossConfig, check_losses
from mri_ds.config.model import ModelConfig
from mri_ds.config.override import apply_override
from mri_ds.config.predict import PredictConfig
from mri_ds.config.scales import SCALES
from mri_ds.config.spelling import nearest
from mri_ds.config.strict import Strict
from mri_ds.config.task import TaskConfig
from mri_ds.config.training import TrainingConfig
from mri_ds.config.validation import read_section
from mri_ds.errors import InputError

# Written in the DeepSpeed JSON, so refused here: a knob lives in one of the two files.
SPEED_KEYS = {
    "train_micro_batch_size_per_gpu", "micro_batch", "gradient_accumulation_steps", "gradient_clipping", "precision", "fp16",
    "bf16", "zero_optimization", "expert_parallel", "activation_checkpointing", "recompute",
}  # fmt: skip


class RunConfig(Strict):
    """The whole science of one run."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()
    tasks: dict[str, TaskConfig] = {}
    curriculum: CurriculumConfig | None = None
    predict: PredictConfig = PredictConfig()


def load_config(path: str | Path | None = None, *, overrides: Sequence[str] = (), scale: str | None = None) -> RunConfig:
    """Reads YAML (or nothing), applies `section.key=value` overrides, fills the scale's row.

    `scale` (from the command line or the JSON's name) gives way to a scale that the YAML states only when it is None.
    Raises InputError for an unreadable file, an unknown key, a value out of range or an unknown scale.
    """
    raw = _read_yaml(Path(path)) if path is not None else {}
    for item in overrides:
        apply_override(raw, item)
    where = str(path) if path is not None else "--set"
    model = raw.setdefault("model", {})
    if isinstance(model, dict):
        name = scale or model.get("scale", "small")
        if not isinstance(name, str) or name not in SCALES:
            what = f"unknown scale {name!r}; there are {', '.join(SCALES)}"
            raise InputError(
                what, where=f"{where}: model.scale" if not scale else "--scale", fix=nearest(str(name), list(SCALES))
            )
        raw["model"] = {**SCALES[name], **model, "scale": name}
    return validate(raw, where=where)


def validate(raw: Mapping[str, Any], *, where: str = "config") -> RunConfig:
    """Plain mapping -> RunConfig. Raises InputError that names the first bad key, its value and the nearest valid key."""
    for section, value in raw.items():
        for key in (section, *value) if isinstance(value, Mapping) and section != "tasks" else (section,):
            if key in SPEED_KEYS:
                raise InputError(f"{key!r} is a knob of speed", where=where, fix="set it in the DeepSpeed JSON, or with --ds")
    config = read_section(RunConfig, raw, where=where)
    check_losses(config.loss, config.tasks, config.model, where=where)
    return config


def validate_data(raw: Mapping[str, Any], *, where: str = "data") -> DataConfig:
    """Plain mapping -> DataConfig, as `validate`."""
    return read_section(DataConfig, raw, where=where)


def dump_config(config: RunConfig) -> str:
    """RunConfig -> YAML text that `load_config` reads back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text())
    except OSError as err:
        raise InputError(err.strerror or str(err), where=path, fix="give an existing YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise InputError(f"is not YAML: {err}", where=path, fix="correct the syntax") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise InputError(f"holds a {type(raw).__name__}, not a mapping", where=path, fix="write `section: {key: value}`")
    return raw
