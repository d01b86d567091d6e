"""How a trained network is applied: windows and the flips that are averaged."""

from typing import Literal

from pydantic import Field

from mri_ds.config.strict import Strict


class PredictConfig(Strict):
    """What `mri-ds predict` does unless its options say otherwise. None of it changes training."""

    overlap: float = Field(default=0.5, ge=0, lt=1)  # of neighbouring windows
    flip_axes: list[Literal[0, 1, 2]] = []  # test-time augmentation: every combination of these flips; 0 is left-right
