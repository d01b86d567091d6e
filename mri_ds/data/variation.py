"""How a sample of the loader is varied, be it a subject's or synthetic: `data.augment`, then a user's own pipeline.

Axes: C channel, D H W voxels of what a variation looks at.
In: a generator for the dice; the voxels in the window of what was drawn.  Out: image (C, *patch), labels {task: (*patch)}.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from mri_ds.augment.albumentations_pipeline import apply_pipeline, load_pipeline
from mri_ds.augment.spatial import Window
from mri_ds.augment.transform import AugmentParams, apply_to_box, sample_params
from mri_ds.config import DataConfig, Triple

Labels = Mapping[str, Tensor]


class Variation:
    """Draws first and applies later: between the two its user reads, or makes, the voxels that are looked at and no more."""

    def __init__(self, data: DataConfig) -> None:
        """`data.patch` is resolved. Raises InputError for a pipeline that cannot be loaded."""
        assert data.patch != "auto", "resolve `auto` with preprocess.propose first"
        self.data, self.patch = data, data.patch
        self.pipeline = load_pipeline(data.albumentations) if data.albumentations else None

    def draw(self, rng: np.random.Generator, *, spacing_mm: Sequence[float], num_channels: int) -> AugmentParams:
        """The dice of one sample; without `data.augment` the identity, which takes none."""
        patch: Triple = self.patch
        if not self.data.augment:
            return AugmentParams(patch)
        return sample_params(
            rng,
            shape=patch,
            spacing_mm=spacing_mm,
            num_channels=num_channels,
            strength=self.data.augment.strength,
            prob=self.data.augment.prob.model_dump(),
            flip_axes=self.data.flip_axes,
        )

    def apply(
        self, image: Tensor, labels: Labels, params: AugmentParams, window: Window, *, fill: float, rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Image (C, *window.box) and labels there, varied. Beyond the source lies `fill`; `rng` is for the pipeline."""
        image, varied = apply_to_box(image, labels, params, window, fill=fill)
        if self.pipeline is not None:
            image, varied = apply_pipeline(self.pipeline, image, varied, seed=int(rng.integers(2**32)))
        return image, varied
