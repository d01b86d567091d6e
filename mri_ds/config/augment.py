"""How images are varied in training: a strength and a chance for each variation."""

from typing import Literal

from pydantic import Field, model_validator

from mri_ds.config.strict import Strict


class AugmentProb(Strict):
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


class AugmentConfig(Strict):
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
