"""What the network is shown: grid, patch, intensities, order of subjects, synthetic samples."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_serializer, field_validator, model_validator

from mri_ds.config.augment import AugmentConfig
from mri_ds.config.strict import Strict, Triple


class Intensity(Strict):
    """What one channel is normalised with: clipped to low..high, less the mean, over the standard deviation."""

    low: float
    high: float
    mean: float
    std: float = Field(gt=0)


class SynthesisConfig(Strict):
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


class DataConfig(Strict):
    """What the network is shown. `auto` values come from the shards' manifest, and of the machine."""

    spacing_mm: Literal["auto"] | tuple[float, float, float] = "auto"  # of the network's grid
    patch: Literal["auto"] | Triple = "auto"  # voxels of that grid
    clip_percentiles: tuple[float, float] = (0.5, 99.5)
    augment: AugmentConfig | None = Field(
        default=AugmentConfig(), json_schema_extra={"allowed": "true, false or a section, {key: value}"}
    )  # true: as it stands above
    albumentations: str = ""  # file of a pipeline that albumentations.save wrote (.json, .yaml); it comes after `augment`
    normalization: Literal["subject", "dataset"] = "subject"  # dataset: one scale for all, where values mean something (T1 maps)
    intensities: list[Intensity] = []  # per channel, over the training subjects; filled in for normalization: dataset
    crop_margin_mm: float | None = Field(default=None, ge=0)  # None: the whole volume; else the body's box and this much about it
    bias_correction: bool = False  # N4, by SimpleITK
    flip_axes: list[Literal[0, 1, 2]] = []  # flips are drawn only where anatomy allows; 0 is left-right
    foreground_prob: float = Field(default=0.5, ge=0, le=1)  # chance that a crop smaller than the volume is centred on foreground
    num_workers: Literal["auto"] | Annotated[int, Field(ge=0)] = (
        "auto"  # processes per rank that read and vary; see data/loader.py
    )
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
