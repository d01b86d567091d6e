"""manifest.json: statistics by hand, refusals in one line."""

import json

import numpy as np
import pytest

from mri_ds.config import TaskConfig
from mri_ds.data.fingerprint import Summary, fingerprint
from mri_ds.data.manifest import MANIFEST, read_manifest, with_statistics
from mri_ds.errors import InputError

TASKS = {
    "tissue": TaskConfig(kind="segmentation", classes=["background", "grey"]),
    "lesion": TaskConfig(kind="classification", classes=["none", "few", "many"]),
    "age": TaskConfig(kind="regression"),
}


def summary(counts=None, shape=(10, 10, 10), spacing=(1.0, 1.0, 1.0), **values) -> Summary:
    return Summary(shape, spacing, {} if counts is None else {"tissue": np.array(counts)}, values)


def test_statistics_by_hand():
    """Voxels 90 + 60 background, 10 + 40 grey -> 0.75, 0.25; one few of four graded; ages 20, 40 -> 30 +- 10."""
    train = [summary([90, 10], lesion=0, age=20.0), summary([60, 40], lesion=1, age=40.0), summary(lesion=0), summary(lesion=0)]
    tasks = with_statistics(TASKS, train)
    assert tasks["tissue"].class_prior == [0.75, 0.25] and tasks["lesion"].class_prior == [0.75, 0.25, 0.0]
    assert (tasks["age"].mean, tasks["age"].std) == (30.0, 10.0)
    assert TASKS["tissue"].class_prior == [], "the given tasks were changed"


def test_one_value_and_no_value():
    tasks = with_statistics(TASKS, [summary(age=20.0), summary(age=20.0)])
    assert (tasks["age"].mean, tasks["age"].std) == (20.0, 1.0)
    assert tasks["tissue"].class_prior == [] and tasks["lesion"].class_prior == []


def test_fingerprint_is_the_median_per_axis():
    parts = [
        summary(shape=(10, 30, 20), spacing=(1, 2, 3)),
        summary(shape=(20, 10, 20), spacing=(3, 2, 1)),
        summary(shape=(30, 20, 25)),
    ]
    result = fingerprint(parts)
    assert result.median_shape == (20, 20, 20) and result.median_spacing_mm == (1.0, 2.0, 1.0)
    assert fingerprint(parts[:2]).median_shape == (15, 20, 20)


def test_a_folder_without_shards_says_how_to_make_them(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match=r"no shards here.*Fix: run `mri-ds shard SRC --out DIR`") as caught:
            read_manifest(folder)
        assert str(caught.value).startswith(str(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw | {"format_version": 1}, "format_version 1 is unknown"),
        (lambda raw: raw | {"surprise": 1}, "surprise"),
        (lambda raw: {k: v for k, v in raw.items() if k != "splits"}, "splits"),
        (lambda raw: raw | {"splits": {"train": {"shards": ["../x.tar"], "num_samples": 1}}}, "splits.train.shards.0"),
        (lambda raw: raw | {"splits": {"train": {"shards": ["gone.tar"], "num_samples": 1}}}, "gone.tar, which is not there"),
        (lambda raw: [raw], "format_version None"),
    ],
)
def test_a_broken_manifest_is_one_line(write_folder, make_sample, change, message):
    folder = write_folder([make_sample(0)])
    raw = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(change(raw)))
    with pytest.raises(InputError, match=message):
        read_manifest(folder)


def test_cut_off_json_is_one_line(write_folder, make_sample):
    folder = write_folder([make_sample(0)])
    (folder / MANIFEST).write_text((folder / MANIFEST).read_text()[:50])
    with pytest.raises(InputError, match=r"is not JSON"):
        read_manifest(folder)
