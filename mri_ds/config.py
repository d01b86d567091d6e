"""Every scientific choice of a run, as typed plain data; YAML in, YAML out.

Speed (precision, ZeRO, expert parallelism, recomputation, micro-batch) is not here: it lives in `ds_configs/*.json`.
A misspelt key is an error that names it and its nearest match.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer, field_validator, model_validator

from mri_ds.errors import InputError

TaskKind = Literal["segmentation", "classification", "regression"]
Triple = tuple[int, int, int]
Model = TypeVar("Model", bound=BaseModel)

SHARE_FLOOR = 1e-5  # a class's share of a volume is taken to be at least this before its logarithm


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class TaskConfig(_Strict):
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


class ModelConfig(_Strict):
    """Architecture. `scale` names a row of SCALES; a field set here explicitly wins over the row."""

    scale: str = "small"
    in_channels: int = Field(default=1, ge=1)
    embed_dim: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_experts: int = 64
    expert_hidden: int = 256
    top_k: int = 2
    token_stride: Triple = (8, 8, 8)  # voxels from one token to the next; cubes are twice as long, so they overlap
    stem_channels: int = 8  # full-resolution feature width; half resolution has 4 times as many
    gradient_scales_mm: list[float] = [1.0, 2.0]
    attention: Literal["full", "windowed"] = "full"
    window: Triple = (4, 4, 4)  # tokens
    drop_path: float = Field(default=0.1, ge=0, lt=1)
    attention_dropout: float = Field(default=0.0, ge=0, lt=1)
    use_gradients: bool = True
    use_multi_scale: bool = True
    use_moe: bool = True
    use_kan: bool = True
    use_cross_task: bool = True


# params (total)      tiny: tests     32 M     85 M    200 M    500 M
SCALES: dict[str, dict[str, int]] = {
    "tiny": {"embed_dim": 32, "num_layers": 2, "num_heads": 2, "num_experts": 4, "expert_hidden": 32, "stem_channels": 4},
    "small": {"embed_dim": 128, "num_layers": 4, "num_heads": 4, "num_experts": 64, "expert_hidden": 272, "stem_channels": 8},
    "base": {"embed_dim": 256, "num_layers": 8, "num_heads": 8, "num_experts": 16, "expert_hidden": 736, "stem_channels": 8},
    "large": {"embed_dim": 512, "num_layers": 12, "num_heads": 8, "num_experts": 8, "expert_hidden": 1024, "stem_channels": 16},
    "xl": {"embed_dim": 768, "num_layers": 16, "num_heads": 12, "num_experts": 8, "expert_hidden": 1360, "stem_channels": 16},
}


class AugmentProb(_Strict):
    """Chance of each variation, for every sample anew; one whose strengths are 0 never happens."""

    flip: float = Field(default=1.0, ge=0, le=1)
    quarter_turn: float = Field(default=0.5, ge=0, le=1)
    affine: float = Field(default=0.7, ge=0, le=1)
    elastic: float = Field(default=0.3, ge=0, le=1)
    grid_distortion: float = Field(default=0.2, ge=0, le=1)
    bias_field: float = Field(default=0.3, ge=0, le=1)
    gamma: float = Field(default=0.3, ge=0, le=1)
    contrast: float = Field(default=0.3, ge=0, le=1)
    motion: float = Field(default=0.1, ge=0, le=1)
    blur: float = Field(default=0.2, ge=0, le=1)
    low_resolution: float = Field(default=0.2, ge=0, le=1)
    gibbs: float = Field(default=0.1, ge=0, le=1)
    ghosting: float = Field(default=0.1, ge=0, le=1)
    spike: float = Field(default=0.05, ge=0, le=1)
    noise: float = Field(default=0.2, ge=0, le=1)
    rician_noise: float = Field(default=0.2, ge=0, le=1)
    channel_dropout: float = Field(default=0.1, ge=0, le=1)


class AugmentConfig(_Strict):
    """How strong each variation may be; what is drawn lies between none and this. 0 switches one off. Images are normalised."""

    flip: float = Field(default=0.5, ge=0, le=1)  # chance of each of data.flip_axes
    quarter_turn: Literal[0, 1] = 0  # turns by 90, 180 or 270 degrees in planes that they leave as they are
    rotate_deg: float = Field(default=15.0, ge=0, le=180)  # about each axis
    scale: float = Field(default=0.1, ge=0, le=1)  # zoom between 1 / (1 + scale) and 1 + scale
    shear: float = Field(default=0.0, ge=0, le=0.5)  # mm per mm
    translate_mm: float = Field(default=0.0, ge=0)
    elastic_mm: float = Field(default=5.0, ge=0)  # displacement of control points
    elastic_grid_mm: float = Field(default=24.0, gt=0)  # distance between control points
    grid_distortion: float = Field(default=0.0, ge=0, lt=1)  # relative change in length of each fifth of an axis
    bias_field: float = Field(default=0.4, ge=0)  # logarithm of the gain
    gamma: float = Field(default=0.3, ge=0)  # logarithm of the exponent
    contrast: float = Field(default=0.2, ge=0, lt=1)  # relative gain; half as much offset, in standard deviations
    motion_mm: float = Field(default=0.0, ge=0)  # between k-space lines: mm along and degrees about each axis
    blur_mm: float = Field(default=0.0, ge=0)  # standard deviation of a Gaussian
    low_resolution: float = Field(default=0.0, ge=0)  # voxels up to 1 + this times as long
    gibbs: float = Field(default=0.0, ge=0, lt=1)  # share of the frequencies of each axis that is cut off
    ghosting: float = Field(default=0.0, ge=0, le=1)  # share of the signal missing from every so many k-space planes
    spike: float = Field(default=0.0, ge=0)  # amplitude in standard deviations
    noise: float = Field(default=0.15, ge=0)  # Gaussian, standard deviations
    rician_noise: float = Field(default=0.0, ge=0)  # in both parts of the complex signal, standard deviations
    channel_dropout: float = Field(default=0.0, ge=0, le=1)  # chance of each channel to be absent; one always stays
    prob: AugmentProb = AugmentProb()

    @model_validator(mode="after")
    def _keeps_space_in_order(self) -> "AugmentConfig":
        if self.elastic_mm > 0.4 * self.elastic_grid_mm:  # as augment.deformation.NO_FOLD
            raise ValueError("elastic_mm could fold space: keep it at most 0.4 x elastic_grid_mm")
        return self

    @property
    def strength(self) -> dict[str, float]:
        """All but the chances, as augment.transform.sample_params takes it."""
        return {name: float(getattr(self, name)) for name in AugmentConfig.model_fields if name != "prob"}


class Intensity(_Strict):
    """What one channel is normalised with: clipped to low..high, less the mean, over the standard deviation."""

    low: float
    high: float
    mean: float
    std: float = Field(gt=0)


class SynthesisConfig(_Strict):
    """Images synthesised from label maps. Strengths are the largest that is drawn; 0 leaves that step out."""

    labels: str = ""  # folder of label maps; where its labels.yaml is absent, FreeSurfer's ids
    share: float = Field(default=0.5, gt=0, lt=1)  # of an epoch's samples
    task: str = ""  # the segmentation task that they teach; may be left out where there is only one
    rotate_deg: float = Field(default=15.0, ge=0, le=180)
    scale: float = Field(default=0.15, ge=0, lt=1)
    shear: float = Field(default=0.012, ge=0, lt=0.3)
    elastic_mm: float = Field(default=6.0, ge=0)
    elastic_grid_mm: float = Field(default=20.0, gt=0)  # between control points; elastic_mm is at most 0.4 of it
    bias: float = Field(default=0.5, ge=0)  # standard deviation of the log gain's control points
    gamma: float = Field(default=0.4, ge=0)  # standard deviation of the exponent's logarithm
    max_slice_mm: float = Field(default=8.0, ge=0)  # thick slices along one axis
    max_voxel_mm: float = Field(default=4.0, ge=0)  # coarse voxels along all
    noise: float = Field(default=0.08, ge=0)  # relative to the brightest tissue
    artefact_prob: float = Field(default=0.1, ge=0, le=1)  # of ghosts, and of ringing

    @model_validator(mode="after")
    def _does_not_fold(self) -> "SynthesisConfig":
        if self.elastic_mm > 0.4 * self.elastic_grid_mm:
            raise ValueError(f"elastic_mm could fold space: keep it within 0.4 x elastic_grid_mm ({self.elastic_grid_mm})")
        return self


class DataConfig(_Strict):
    """What the network is shown. `auto` values come from the shards' manifest."""

    spacing_mm: Literal["auto"] | tuple[float, float, float] = "auto"  # of the network's grid
    patch: Literal["auto"] | Triple = "auto"  # voxels of that grid
    clip_percentiles: tuple[float, float] = (0.5, 99.5)
    augment: AugmentConfig | None = AugmentConfig()  # YAML: true (as it stands above), false, or some of its keys
    albumentations: str = ""  # file of a pipeline that albumentations.save wrote (.json, .yaml); it comes after `augment`
    normalization: Literal["subject", "dataset"] = "subject"  # dataset: one scale for all, where values mean something (T1 maps)
    intensities: list[Intensity] = []  # per channel, over the training subjects; filled in for normalization: dataset
    crop_margin_mm: float | None = Field(default=None, ge=0)  # None: the whole volume; else the body's box and this much about it
    bias_correction: bool = False  # N4, by SimpleITK
    flip_axes: list[Literal[0, 1, 2]] = []  # flips are drawn only where anatomy allows; 0 is left-right
    foreground_prob: float = Field(default=0.5, ge=0, le=1)  # chance that a crop smaller than the volume is centred on foreground
    num_workers: int = Field(default=0, ge=0)
    balance: str = "none"  # what is shown equally often: "task", "site" or the classes of a classification task, by its name
    shuffle_shards: int = Field(default=0, ge=0)  # shards shuffled together; 0 all. Fewer read a slow source in larger pieces
    skip_unreadable: bool = False  # show a subject that cannot be read as a masked one, and say so, instead of stopping
    cache_dir: str = ""  # of remote shards, shared by the ranks of a node; empty: in the user's cache folder
    cache_gib: float = Field(default=10.0, ge=0)  # its bound; 0 keeps nothing on disk
    synthesis: SynthesisConfig | None = None  # samples made from label maps, beside those of the shards

    @field_validator("augment", mode="before")
    @classmethod
    def _read_switch(cls, value: Any) -> Any:
        return {True: {}, False: None}[value] if isinstance(value, bool) else value

    @field_serializer("augment")
    def _write_switch(self, value: AugmentConfig | None) -> dict[str, Any] | bool:
        return value.model_dump(mode="json") if value else False


# keys of `data` on which the order of subjects depends, or that are of the machine: no stage may change them
ORDER_KEYS = ["synthesis", "balance", "shuffle_shards", "skip_unreadable", "cache_dir", "cache_gib", "num_workers"]


class LossConfig(_Strict):
    """Weights of the terms inside one task; between tasks the weights are learned."""

    dice: float = Field(default=1.0, ge=0)
    cross_entropy: float = Field(default=1.0, ge=0)
    boundary: float = Field(default=0.0, ge=0)
    class_balance: float = Field(default=0.5, ge=0, le=1)  # cross-entropy weight of a class: its voxel share to minus this power
    focal_gamma: float = Field(default=0.0, ge=0)  # 0 is plain cross-entropy
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    learn_task_weights: bool = True


class TrainingConfig(_Strict):
    """Optimisation. One step is one weight update on `global_batch` subjects, whatever the number of ranks."""

    steps: int = Field(default=1000, ge=1)
    global_batch: int = Field(default=4, ge=1)
    lr: float = Field(default=2e-3, gt=0)
    min_lr_ratio: float = Field(default=0.01, ge=0, le=1)
    warmup_fraction: float = Field(default=0.1, ge=0, le=1)
    weight_decay: float = Field(default=0.02, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    balance_rate: float = Field(default=0.1, ge=0)  # step of the experts' selection bias, of the mean score; 0 is off
    seed: int = 0
    log_every: int = Field(default=10, ge=1)
    image_every: int = Field(default=100, ge=1)
    checkpoint_every: int = Field(default=100, ge=1)


class PaceConfig(_Strict):
    """How a level rises from `start` to `end` percent over `steps` steps, in jumps of `by`: DeepSpeed's CurriculumScheduler."""

    start: int = Field(ge=1, le=100)
    end: int = Field(default=100, ge=1, le=100)
    steps: int = Field(ge=1)
    by: int = Field(default=5, ge=1, le=100)
    root: int = Field(default=1, ge=1)  # 1 rises evenly, 2 with the square root of the steps: fast at first

    @model_validator(mode="after")
    def _rises(self) -> "PaceConfig":
        if self.end < self.start:
            raise ValueError(f"end {self.end} is under start {self.start}: a curriculum goes from easy to hard")
        if self.start % self.by or self.end % self.by:
            raise ValueError(f"start {self.start} and end {self.end} must be multiples of by {self.by}")
        return self


class StageConfig(_Strict):
    """What is different from `from_step` on: `tasks` are those that are learned (none: all), `data` replaces keys of `data:`."""

    from_step: int = Field(default=0, ge=0)
    tasks: list[str] = []
    data: dict[str, Any] = {}

    @model_validator(mode="after")
    def _keeps_the_order(self) -> "StageConfig":
        if fixed := [key for key in self.data if key in ORDER_KEYS]:
            raise ValueError(f"data.{fixed[0]} cannot change within a run")
        if auto := [key for key, value in validate_data(self.data).model_dump().items() if key in self.data and value == "auto"]:
            raise ValueError(f"data.{auto[0]} cannot be auto in a stage: give its value")
        return self


class CurriculumConfig(_Strict):
    """From easy to hard. Every section is optional: subjects (easiest first), crop, resolution, stages."""

    difficulty: str = "loss"  # of a subject: its running loss, or a scalar label of the shards ("-age": high values are easy)
    every: int = Field(default=50, ge=1)  # steps between changes; each starts the loader anew, which costs seconds
    subjects: PaceConfig | None = None
    crop: PaceConfig | None = None
    resolution: PaceConfig | None = None
    stages: list[StageConfig] = []

    @model_validator(mode="after")
    def _starts_somewhere(self) -> "CurriculumConfig":
        steps = [stage.from_step for stage in self.stages]
        if steps and (steps[0] != 0 or sorted(set(steps)) != steps):
            raise ValueError(f"stages begin at steps {steps}: the first must begin at 0, each other one later")
        return self


class RunConfig(_Strict):
    """The whole science of one run."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()
    tasks: dict[str, TaskConfig] = {}
    curriculum: CurriculumConfig | None = None


def load_config(path: str | Path | None = None, *, overrides: Sequence[str] = (), scale: str | None = None) -> RunConfig:
    """Reads YAML (or nothing), applies `section.key=value` overrides, fills the scale's row.

    `scale` (from the command line or the JSON's name) gives way to a scale that the YAML states only when it is None.
    Raises InputError for an unreadable file, an unknown key, a value out of range or an unknown scale.
    """
    raw = _read_yaml(Path(path)) if path is not None else {}
    for item in overrides:
        _apply_override(raw, item)
    where = str(path) if path is not None else "--set"
    model = raw.setdefault("model", {})
    if isinstance(model, dict):
        name = scale or model.get("scale", "small")
        if name not in SCALES:
            raise InputError(f"unknown scale {name!r}", where=where, fix=f"use one of {', '.join(SCALES)}")
        raw["model"] = {**SCALES[name], **model, "scale": name}
    return validate(raw, where=where)


def validate(raw: Mapping[str, Any], *, where: str = "config") -> RunConfig:
    """Plain mapping -> RunConfig. Raises InputError that names the first bad key, its value and the nearest valid key."""
    return _validate(RunConfig, raw, where)


def validate_data(raw: Mapping[str, Any], *, where: str = "data") -> DataConfig:
    """Plain mapping -> DataConfig, as `validate`."""
    return _validate(DataConfig, raw, where)


def _validate(model: type[Model], raw: Mapping[str, Any], where: str) -> Model:
    try:
        return model.model_validate(raw)
    except ValidationError as err:
        first = next((e for e in err.errors() if e["type"] == "extra_forbidden"), err.errors()[0])
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = _known_keys(model, first["loc"][:-1])
            raise InputError(f"unknown key {key!r}", where=where, fix=nearest(str(first["loc"][-1]), known)) from None
        raise InputError(f"{key} = {first['input']!r}: {first['msg']}", where=where, fix=f"correct {key}") from None


def dump_config(config: RunConfig) -> str:
    """RunConfig -> YAML text that `load_config` reads back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def nearest(word: str, known: Sequence[str]) -> str:
    """A fix for a misspelt word: its closest match, or all that is allowed."""
    match = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {match[0]!r}?" if match else f"use one of {', '.join(sorted(known))}"


def _known_keys(section: type[BaseModel], loc: Sequence[Any]) -> list[str]:
    """Keys of the section that stands at `loc` (names of sections, of tasks, numbers of stages)."""
    for part in loc:
        field = section.model_fields.get(str(part))
        section = _section_in(field.annotation) or section if field is not None else section
    return list(section.model_fields)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """TaskConfig of dict[str, TaskConfig], SynthesisConfig of SynthesisConfig | None, ..."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_in(part)) is not None), None)


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


def _apply_override(raw: dict[str, Any], item: str) -> None:
    key, sep, text = item.partition("=")
    if not sep or not key:
        raise InputError(f"--set {item!r} has no value", fix="write --set section.key=value, as training.steps=200")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"--set {item!r}: {text!r} is not a YAML value", fix="quote it") from None
    *parents, last = key.split(".")
    node = raw
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise InputError(f"--set {item!r}: {parent!r} is not a section", fix="write section.key=value")
    node[last] = value
