"""What is proposed for "auto", by worked numbers."""

from types import SimpleNamespace

import pytest

from mri_ds.config import DataConfig, Intensity, TaskConfig
from mri_ds.data.manifest import Fingerprint, Manifest
from mri_ds.data.preprocess import dataset_intensities, propose
from mri_ds.errors import InputError


def make_manifest(shape, spacing) -> Manifest:
    return Manifest(
        format_version=1,
        layout="folder",
        channels=["T1w"],
        tasks={"age": TaskConfig(kind="regression")},
        splits={},
        fingerprint=Fingerprint(median_spacing_mm=spacing, median_shape=shape),
    )


def test_propose_fits_the_median_subject():
    """Hippocampus: 36 x 50 x 35 voxels of 1 mm -> 40 x 56 x 40, 10 x 14 x 10 = 1,400 tokens at stride 4."""
    proposed = propose(make_manifest((36, 50, 35), (1.0, 1.0, 1.0)))
    assert proposed == {"spacing_mm": (1.0, 1.0, 1.0), "patch": (40, 56, 40), "token_stride": (4, 4, 4)}


def test_propose_caps_the_patch_and_coarsens_the_tokens():
    proposed = propose(make_manifest((180, 220, 33), (1.0, 1.0, 4.0)))
    assert proposed["patch"] == (96, 96, 40) and proposed["token_stride"] == (8, 8, 8)


def test_propose_builds_on_what_is_given():
    proposed = propose(make_manifest((36, 50, 35), (1.0, 1.0, 1.0)), spacing_mm=(2.0, 2.0, 2.0))
    assert proposed == {"spacing_mm": (2.0, 2.0, 2.0), "patch": (24, 32, 24), "token_stride": (4, 4, 4)}
    assert propose(make_manifest((36, 50, 35), (1.0, 1.0, 1.0)), patch=(64, 64, 64))["token_stride"] == (8, 8, 8)


PERCENTILES = {"0": 1.0, "0.5": 20.0, "1": 30.0, "99": 900.0, "99.5": 950.0, "100": 2e6}


def pooled(*scales: tuple[float, float], channels=None) -> SimpleNamespace:
    """A manifest whose fingerprint has one foreground per (mean, std)."""
    foreground = [SimpleNamespace(mean=mean, std=std, percentiles=PERCENTILES) for mean, std in scales]
    names = channels or [f"c{i}" for i in range(len(scales))]
    return SimpleNamespace(channels=names, fingerprint=SimpleNamespace(foreground=foreground))


def test_one_scale_for_all_subjects_comes_from_the_fingerprint():
    data = DataConfig(normalization="dataset")
    got = dataset_intensities(data, pooled((400, 120), (7, 0)))
    assert got == [Intensity(low=20, high=950, mean=400, std=120), Intensity(low=20, high=950, mean=7, std=1)]
    wider = data.model_copy(update={"clip_percentiles": (0.0, 100.0)})
    assert dataset_intensities(wider, pooled((400, 120))) == [Intensity(low=1, high=2e6, mean=400, std=120)]


def test_a_scale_that_is_given_stays():
    own = [Intensity(low=0, high=1, mean=0.4, std=0.2)]
    assert dataset_intensities(DataConfig(normalization="dataset", intensities=own), pooled((400, 120))) == own
    assert dataset_intensities(DataConfig(), pooled((400, 120))) == []


@pytest.mark.parametrize(
    ("data", "manifest", "message"),
    [
        ({}, pooled(channels=["T1"]), r"shards: normalization: dataset needs intensities of 1 channel\(s\), and there are 0"),
        ({"intensities": [Intensity(low=0, high=1, mean=0, std=1)]}, pooled((1, 1), (2, 2)), "of 2 channel.*there are 1"),
        ({"clip_percentiles": (2, 98)}, pooled((1, 1)), "no percentile 2 for .*use two of 0, 0.5, 1, 99, 99.5, 100"),
    ],
)
def test_what_is_missing_is_said(data, manifest, message):
    with pytest.raises(InputError, match=message):
        dataset_intensities(DataConfig(normalization="dataset", **data), manifest, where="shards")
