"""The fingerprint: merged subject by subject, equal to numpy's over all voxels at once."""

import json

import numpy as np
import pytest

from mri_ds.config import TaskConfig
from mri_ds.data.fingerprint import SKETCH, Summary, fingerprint, sketch
from mri_ds.data.index import ShardDataset


def summary(channels=(), counts=None, shape=(10, 10, 10), spacing=(1.0, 1.0, 1.0)) -> Summary:
    return Summary(shape, spacing, {} if counts is None else {"tissue": counts}, {}, [sketch(c) for c in channels])


def test_mean_and_deviation_are_those_of_all_voxels_and_percentiles_count_subjects_alike():
    rng = np.random.default_rng(0)
    subjects = [
        [rng.normal(m, s, n), rng.integers(0, 500, n).astype(np.int16)] for m, s, n in [(5, 1, 30), (90, 9, 4000), (7, 3, 500)]
    ]
    result = fingerprint([summary(channels) for channels in subjects])
    for c in range(2):
        voxels = np.concatenate([channels[c] for channels in subjects])
        found = result.foreground[c]
        assert found.num_voxels == 4530
        assert found.mean == pytest.approx(voxels.mean(), rel=1e-12) and found.std == pytest.approx(voxels.std(), rel=1e-9)
        alike = np.concatenate([np.percentile(channels[c], SKETCH) for channels in subjects])
        assert found.percentiles["99.5"] == pytest.approx(np.percentile(alike, 99.5))
        assert (found.percentiles["0"], found.percentiles["100"]) == (voxels.min(), voxels.max())
    assert len(result.foreground[0].percentiles) == 11


def test_grids_and_classes_by_hand():
    """Spacings 1, 2, 3 along the first axis: median 2. Classes: 90 + 50 background, 10 + 0 grey, in 2 and 1 subjects."""
    parts = [summary(counts=[90, 10], spacing=(1, 1, 1)), summary(counts=[50, 0], spacing=(2, 1, 1)), summary(spacing=(3, 1, 5))]
    result = fingerprint(parts)
    assert result.num_subjects == 3 and result.median_spacing_mm == (2, 1, 1)
    assert result.spacing_mm["0"] == (1, 1, 1) and result.spacing_mm["100"] == (3, 1, 5) and result.shape["50"] == (10, 10, 10)
    assert result.voxels_per_class == {"tissue": [140, 10]} and result.subjects_per_class == {"tissue": [2, 1]}
    assert result.foreground == [], "nobody has foreground"


def test_shards_tell_the_foreground_of_their_training_subjects(shards):
    """The bright ball of each subject, 180 +- 10; the rest of the image is not in it, nor are the test subjects."""
    train = ShardDataset(shards, "train")
    samples = [train.read(i) for i in range(len(train))]
    voxels = np.concatenate([s["image"][0][s["targets"]["ball"] > 0] for s in samples]).astype(np.float64)
    (channel,) = train.manifest.fingerprint.foreground
    assert channel.num_voxels == len(voxels) == train.manifest.fingerprint.voxels_per_class["ball"][1]
    assert (channel.mean, channel.std) == (pytest.approx(voxels.mean(), rel=1e-9), pytest.approx(voxels.std(), rel=1e-9))
    assert 175 < channel.percentiles["50"] < 185
    assert json.loads((shards / "manifest.json").read_text())["fingerprint"]["num_subjects"] == 8


def test_without_a_segmentation_the_body_is_the_foreground(tmp_path):
    from mri_ds.data.shards import _foreground

    image = np.zeros((1, 4, 4, 4), np.float32)
    image[0, 1:3, 1:3, 1:3] = 7
    sample = {"image": image, "targets": {"age": 3.0}}
    assert _foreground(sample, {"age": TaskConfig(kind="regression")})[0].tolist() == [7] * 8
    assert _foreground(sample, {"tissue": TaskConfig(kind="segmentation", classes=["a", "b"])}) == [], "it has no label"
