"""Whole in memory or a box at a time from the shard: the same voxels to the bit, and no more read than is shown."""

import numpy as np
import pytest
import torch

from mri_ds.config import DataConfig, Intensity
from mri_ds.data.index import ShardDataset
from mri_ds.data.patches import PatchSource
from mri_ds.data.preprocess import normalize
from mri_ds.data.subjects import StoredSubject, WholeSubject

BIG = 2**30
SHAPE = (70, 40, 52)  # several chunks of 32^3


@pytest.fixture(autouse=True)
def _no_subject_is_large(monkeypatch) -> None:
    monkeypatch.setattr("mri_ds.data.subjects.MANY_PATCHES", 1e9)


@pytest.fixture
def dataset(write_folder, make_sample) -> ShardDataset:
    """0: whole numbers over several chunks; 1: floats with a background of zeros; 2: no labels; 3: smaller than the patch."""
    rng = np.random.default_rng(0)
    samples = [make_sample(i, shape=SHAPE) for i in range(3)] + [make_sample(3, shape=(9, 40, 11))]
    samples[1]["image"][:, :30] = 0
    samples[1]["image"][:, 30:] += rng.random((2, 40, *SHAPE[1:]), dtype=np.float32)
    samples[2]["targets"] = {}
    return ShardDataset(write_folder(samples), "train")


def source(dataset, tasks, *, cache_bytes, **data) -> PatchSource:
    config = DataConfig(**{"spacing_mm": (1, 1, 1), "patch": (16, 24, 16), "augment": {"rotate_deg": 40}} | data)
    return PatchSource(dataset, config, tasks, cache_bytes=cache_bytes)


def assert_same(a, b) -> None:
    assert torch.equal(a["image"], b["image"]) and torch.equal(a["spacing_mm"], b["spacing_mm"])
    assert a["subject_id"] == b["subject_id"] and a["targets"].keys() == b["targets"].keys()
    assert all(torch.equal(a["targets"][name], b["targets"][name]) for name in a["targets"])


SETTINGS = {
    "as it stands": {},
    "only cropped": {"augment": False},
    "other percentiles": {"clip_percentiles": (1.0, 99.0)},
    "one scale for all": {
        "normalization": "dataset",
        "intensities": [Intensity(low=-1, high=3, mean=0.5, std=2), Intensity(low=0, high=1, mean=0, std=1)],
    },
}


@pytest.mark.parametrize("data", SETTINGS.values(), ids=SETTINGS)
def test_boxes_from_the_shard_are_those_of_the_whole_volume_to_the_bit(dataset, tasks, data):
    whole, boxes = (source(dataset, tasks, cache_bytes=n, **data) for n in (BIG, 0))
    for index in range(4):
        for seed in range(6):
            assert_same(*(s.draw(index, np.random.default_rng(seed)) for s in (whole, boxes)))
        assert isinstance(whole.subjects[index], WholeSubject) and isinstance(boxes.subjects[index], StoredSubject)


def test_a_box_is_the_normalised_volume_there(dataset, tasks):
    """The oracle: numpy on all voxels, which knows nothing of meta.json."""
    box = (slice(31, 35), slice(0, 40), slice(50, 52))
    for index in range(3):
        stored = source(dataset, tasks, cache_bytes=0).subjects[index]
        sample = dataset.read(index)
        image, labels = stored.read(box)
        assert np.allclose(image.numpy(), normalize(sample["image"])[(slice(None), *box)], atol=1e-5)
        assert all(np.array_equal(label, sample["targets"][name][box]) for name, label in labels.items())
        assert labels.keys() == {"tissue"} & sample["targets"].keys()


def test_a_window_reads_its_box_and_no_more(dataset, tasks, monkeypatch):
    patches = source(dataset, tasks, cache_bytes=0, augment=False)
    reads = []
    read_crop = dataset.read_crop
    monkeypatch.setattr(
        dataset, "read_crop", lambda i, start, shape, **kw: reads.append(shape) or read_crop(i, start, shape, **kw)
    )
    for seed in range(5):
        patches.draw(0, np.random.default_rng(seed))
    assert reads == [[16, 24, 16]] * 5


def test_whole_subjects_stay_while_there_is_room_and_boxes_serve_the_rest(dataset, tasks):
    size = source(dataset, tasks, cache_bytes=BIG).subjects[0].num_bytes
    subjects = source(dataset, tasks, cache_bytes=size + size // 2).subjects
    assert [type(subjects[i]) for i in (0, 1, 0, 3, 1)] == [
        WholeSubject,
        StoredSubject,
        WholeSubject,
        WholeSubject,
        StoredSubject,
    ]


def test_a_volume_of_many_patches_is_read_in_boxes_though_there_is_room(dataset, tasks, monkeypatch):
    monkeypatch.setattr("mri_ds.data.subjects.MANY_PATCHES", 23.0)  # 70 x 40 x 52 voxels are 23.7 patches of 16 x 24 x 16
    subjects = source(dataset, tasks, cache_bytes=BIG).subjects
    assert [type(subjects[i]) for i in (0, 3)] == [StoredSubject, WholeSubject]
    monkeypatch.setattr("mri_ds.data.subjects.MANY_PATCHES", 24.0)
    assert isinstance(subjects[0], WholeSubject)


def test_subjects_that_must_be_prepared_push_out_the_oldest(dataset, tasks, monkeypatch):
    """On another grid no box will do: room for two, 2 pushes out 1, then 1 pushes out 2."""
    subjects = source(dataset, tasks, cache_bytes=BIG, spacing_mm=(2, 2, 2)).subjects
    size = subjects[0].num_bytes
    subjects = source(dataset, tasks, cache_bytes=2 * size + size // 2, spacing_mm=(2, 2, 2)).subjects
    reads = []
    read = dataset.read
    monkeypatch.setattr(dataset, "read", lambda i, **kw: reads.append(i) or read(i, **kw))
    assert all(isinstance(subjects[i], WholeSubject) for i in (0, 1, 0, 2, 0, 1))
    assert reads == [0, 1, 2, 1]


@pytest.mark.parametrize("data", [{"crop_margin_mm": 5}, {"clip_percentiles": (3.0, 97.0)}], ids=["cropped", "not in meta.json"])
def test_what_only_the_voxels_tell_is_prepared_whole(dataset, tasks, data):
    patches = source(dataset, tasks, cache_bytes=0, **data)
    assert isinstance(patches.subjects[0], WholeSubject) and not patches.subjects._whole
    assert patches.draw(0, np.random.default_rng(0))["subject_id"] == "sub-000"


def test_a_constant_channel_becomes_zero_either_way(write_folder, make_sample, tasks):
    sample = make_sample(0, shape=SHAPE)
    sample["image"][1] = 7
    dataset = ShardDataset(write_folder([sample]), "train")
    whole, boxes = (source(dataset, tasks, cache_bytes=n, augment=False) for n in (BIG, 0))
    drawn = [s.draw(0, np.random.default_rng(0)) for s in (whole, boxes)]
    assert_same(*drawn)
    assert not drawn[1]["image"][1].any() and drawn[1]["image"][0].any()
