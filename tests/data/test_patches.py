"""One subject cut to the patch: places, padding, the cache, what augmentation may change."""

import numpy as np
import pytest
import torch

from mri_ds.config import DataConfig
from mri_ds.data.foreground import foreground_voxels
from mri_ds.data.index import ShardDataset
from mri_ds.data.patches import PatchSource, window_start
from mri_ds.data.preprocess import normalize

BIG = 2**30


@pytest.fixture
def source(write_folder, make_sample, tasks):
    def make(samples=None, cache_bytes=BIG, **data) -> PatchSource:
        samples = samples or [make_sample(i) for i in range(5)]
        config = DataConfig(**{"spacing_mm": (1, 1, 1), "patch": (8, 8, 16), "augment": False} | data)
        return PatchSource(ShardDataset(write_folder(samples), "train"), config, tasks, cache_bytes=cache_bytes)

    return make


def test_a_patch_is_the_normalised_volume_cropped_and_padded(source, make_sample):
    """8 x 9 x 10 voxels, patch 8 x 8 x 16: axis 0 fits, axis 1 is cropped to 8 of 9, axis 2 is padded by 3 on both sides."""
    patch = source().draw(2, np.random.default_rng(0))
    sample = make_sample(2)
    image = normalize(sample["image"])
    assert patch["image"].shape == (2, 8, 8, 16) and patch["subject_id"] == "sub-002"
    starts = [s for s in (0, 1) if np.array_equal(patch["image"][:, :, :, 3:13].numpy(), image[:, :, s : s + 8])]
    assert len(starts) == 1
    assert np.array_equal(
        patch["targets"]["tissue"][:, :, 3:13].numpy(), sample["targets"]["tissue"][:, starts[0] : starts[0] + 8]
    )
    around = torch.cat([patch["image"][..., :3], patch["image"][..., 13:]], dim=-1)
    faces = np.concatenate([np.take(image, [0, -1], axis=a).ravel() for a in (1, 2, 3)])
    assert (around == float(faces.min())).all()
    assert not patch["targets"]["tissue"][..., :3].any() and not patch["targets"]["tissue"][..., 13:].any()


def test_types_and_the_spacing_of_the_network_grid(source, make_sample):
    patch = source([make_sample(1, spacing=(1.0, 2.0, 1.0))], spacing_mm=(1.0, 1.0, 1.5)).draw(0, np.random.default_rng(0))
    assert patch["spacing_mm"].tolist() == pytest.approx([1, 1, 10 / 7]) and patch["spacing_mm"].dtype == torch.float32
    assert patch["image"].dtype == torch.float32
    dtypes = {name: target.dtype for name, target in patch["targets"].items()}
    assert dtypes == {"tissue": torch.int64, "lesion": torch.int64, "age": torch.float32}


def test_missing_labels_are_fillers_of_the_same_shape(source, make_sample):
    patch = source([make_sample(1, without=("tissue", "lesion", "age"))]).draw(0, np.random.default_rng(0))
    assert patch["targets"]["tissue"].shape == (8, 8, 16) and not patch["targets"]["tissue"].any()
    assert patch["targets"]["lesion"].dtype == torch.int64 and patch["targets"]["age"].shape == ()


def test_a_subject_is_prepared_once_and_patches_do_not_touch_it(source, monkeypatch):
    patches = source()
    reads = []
    read = patches.dataset.read
    monkeypatch.setattr(patches.dataset, "read", lambda i, **kw: reads.append(i) or read(i, **kw))
    first = patches.draw(1, np.random.default_rng(0))
    first["image"].zero_()
    first["targets"]["tissue"].zero_()
    second = patches.draw(1, np.random.default_rng(0))
    assert reads == [1] and second["image"].any() and second["targets"]["tissue"].any()


def test_augmentation_is_drawn_from_the_generator_alone(source):
    patches = source(augment=True, flip_axes=[0])
    draws = [patches.draw(0, np.random.default_rng(seed)) for seed in (0, 0, 1, 2)]
    assert torch.equal(draws[0]["image"], draws[1]["image"]) and torch.equal(
        draws[0]["targets"]["tissue"], draws[1]["targets"]["tissue"]
    )
    assert not torch.equal(draws[0]["image"], draws[2]["image"]) or not torch.equal(draws[0]["image"], draws[3]["image"])
    assert all(set(draw["targets"]["tissue"].unique().tolist()) <= {0, 1, 2} for draw in draws)
    assert draws[2]["targets"]["age"] == 20.0


def test_an_axis_that_fits_is_centred_and_a_longer_one_is_covered_evenly():
    starts = [window_start(np.random.default_rng(i), (10, 7, 12), (10, 10, 8), [], 0.5) for i in range(400)]
    assert {(d, h) for d, h, _ in starts} == {(0, -1)}
    counts = np.bincount([w for _, _, w in starts])
    assert len(counts) == 5 and counts.min() > 50


def test_foreground_windows_are_centred_on_it_as_far_as_the_border_allows():
    voxels = [np.array([[50, 3, 97]])]
    for i in range(20):
        assert window_start(np.random.default_rng(i), (100, 100, 100), (16, 16, 16), voxels, 1.0) == (42, 0, 84)
    hits = sum(
        window_start(np.random.default_rng(i), (100, 100, 100), (16, 16, 16), voxels, 0.3) == (42, 0, 84) for i in range(500)
    )
    assert 0.24 < hits / 500 < 0.36


def test_every_class_is_equally_likely_to_be_the_foreground():
    label = np.zeros((30, 30, 30), dtype=np.int16)
    label[:, :, :15] = 1  # 13,500 voxels
    label[29, 29, 29] = 4  # one voxel
    voxels = foreground_voxels(label)
    assert len(voxels) == 2 and len(voxels[0]) <= 4096 and voxels[1].tolist() == [[29, 29, 29]]
    assert (label[tuple(voxels[0].T)] == 1).all() and voxels[0][-1, 0] >= 28, "not spread over the whole class"
    small = sum(window_start(np.random.default_rng(i), (30, 30, 30), (2, 2, 2), voxels, 1.0) == (28, 28, 28) for i in range(400))
    assert 0.4 < small / 400 < 0.6


def test_strengths_and_chances_of_the_config_reach_the_patches(source):
    plain = source(augment=False)

    def varied(**augment) -> PatchSource:
        config = DataConfig(**plain.data.model_dump() | {"augment": augment})
        return PatchSource(plain.dataset, config, plain.tasks, cache_bytes=BIG)

    never = varied(prob=dict.fromkeys(["affine", "elastic", "bias_field", "gamma", "contrast", "noise"], 0))
    weak = dict.fromkeys(["rotate_deg", "scale", "elastic_mm", "bias_field", "gamma", "contrast"], 0)
    noisy = varied(**weak, prob={"noise": 1})
    for seed in range(5):
        expected, same, other = (s.draw(0, np.random.default_rng(seed)) for s in (plain, never, noisy))
        assert torch.equal(same["image"], expected["image"]) and not torch.equal(other["image"], expected["image"])
        assert torch.equal(other["targets"]["tissue"], expected["targets"]["tissue"])


def test_a_users_own_pipeline_comes_last_and_is_drawn_from_the_generator(source, tmp_path):
    albumentations = pytest.importorskip("albumentations", reason="Albumentations is not installed")
    path = tmp_path / "pipeline.json"
    albumentations.save(albumentations.Compose([albumentations.HorizontalFlip(p=0.5)]), path)
    plain = source(augment=False)
    own = PatchSource(plain.dataset, plain.data.model_copy(update={"albumentations": str(path)}), plain.tasks, cache_bytes=BIG)
    flipped = []
    for seed in range(20):
        before, after, again = (s.draw(0, np.random.default_rng(seed)) for s in (plain, own, own))
        assert torch.equal(after["image"], again["image"])
        flipped.append(not torch.equal(after["image"], before["image"]))
        axes = [3] if flipped[-1] else []
        assert torch.equal(after["image"], before["image"].flip(axes))
        assert torch.equal(after["targets"]["tissue"], before["targets"]["tissue"].flip([a - 1 for a in axes]))
    assert 4 < sum(flipped) < 16
