"""What meta.json says of a channel is what normalising measures on all its voxels."""

import numpy as np
import pytest

from mri_ds.data.intensity import CLIPS, describe
from mri_ds.data.preprocess import border_minimum, normalize


def channels() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    skull_stripped = np.where(rng.random((12, 14, 16)) < 0.6, 0, rng.gamma(3, 100, (12, 14, 16)))
    return {
        "whole": rng.normal(100, 20, (12, 14, 16)),
        "skull-stripped": skull_stripped,
        "whole numbers": np.rint(skull_stripped),
        "negative": rng.integers(-900, 900, (12, 14, 16)),
        "few zeros": np.where(rng.random((12, 14, 16)) < 0.05, 0, 7 + rng.random((12, 14, 16))),
    }


@pytest.mark.parametrize("name", channels())
@pytest.mark.parametrize("percentiles", CLIPS)
def test_normalising_by_it_is_normalising_by_all_voxels(name, percentiles):
    channel = channels()[name].astype(np.float32)
    for stored in {channel.dtype, np.dtype(np.int16)} if name in ("whole numbers", "negative") else {channel.dtype}:
        told = describe(channel.astype(stored))
        clip = told.clip(percentiles)
        by_hand = (np.clip(channel.astype(np.float64), clip.low, clip.high) - clip.mean) / clip.std
        assert np.allclose(by_hand, normalize(channel[None], percentiles)[0], atol=1e-5)
        assert told.border_min == border_minimum(channel[None])


def test_percentiles_that_are_not_kept_are_none_and_nan_counts_as_zero():
    channel = np.full((3, 3, 3), 5, np.float32)
    assert describe(channel).clip((3.0, 97.0)) is None
    channel[1, 1, 1] = np.nan
    assert describe(channel).clip((0.0, 100.0)).low == 0.0
