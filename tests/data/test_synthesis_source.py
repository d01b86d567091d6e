"""Synthetic samples beside real ones: the same interface, labels by class name, every real subject still once an epoch."""

import dataclasses

import numpy as np
import pytest
import torch
from synthesis_maps import nested_ellipsoids, write_map

from mri_ds.augment.transform import KNOBS, apply_to_box, sample_params, window_of
from mri_ds.config import DataConfig, SynthesisConfig, TaskConfig
from mri_ds.data.index import ShardDataset
from mri_ds.data.patches import PatchSource
from mri_ds.data.synthesis.label_map import LabelMaps
from mri_ds.data.synthesis.source import LabelMapSource, MixedSource, with_synthesis
from mri_ds.errors import InputError

QUIET = {"rotate_deg": 0, "scale": 0, "shear": 0, "elastic_mm": 0, "max_slice_mm": 0, "max_voxel_mm": 0}


@pytest.fixture
def label_folder(tmp_path):
    folder = tmp_path / "label_maps"
    for name in ("one", "two", "three"):
        write_map(folder / f"{name}.nii.gz", nested_ellipsoids())
    (folder / "labels.yaml").write_text("classes: {white: [2, 41], grey: [3, 42]}\nsame_intensity: [[2, 41], [3, 42]]\n")
    return folder


@pytest.fixture
def data(label_folder):
    def make(patch=(16, 24, 16), foreground_prob=0.5, augment=False, flip_axes=(), **synthesis) -> DataConfig:
        strengths = SynthesisConfig(labels=str(label_folder), **synthesis)
        seen = {"patch": patch, "foreground_prob": foreground_prob, "augment": augment, "flip_axes": list(flip_axes)}
        return DataConfig(num_workers=0, spacing_mm=(1, 1, 1), synthesis=strengths, **seen)

    return make


@pytest.fixture
def real(write_folder, make_sample, tasks):
    def make(config: DataConfig, num: int = 6) -> PatchSource:
        samples = [make_sample(i, without=("age",) if i == 2 else ()) for i in range(num)]
        return PatchSource(ShardDataset(write_folder(samples), "train"), config, tasks, cache_bytes=2**30)

    return make


def test_a_synthetic_patch_is_shaped_like_a_real_one(data, real, tasks):
    source = with_synthesis(real(data()), data(), tasks, num_channels=2)
    one, other = source.draw(0, np.random.default_rng(0)), source.draw(len(source) - 1, np.random.default_rng(0))
    assert one.keys() == other.keys() and one["targets"].keys() == other["targets"].keys()
    for a, b in [(one["image"], other["image"]), (one["spacing_mm"], other["spacing_mm"])]:
        assert a.shape == b.shape and a.dtype == b.dtype
    for name in tasks:
        assert one["targets"][name].shape == other["targets"][name].shape
        assert one["targets"][name].dtype == other["targets"][name].dtype
    assert other["subject_id"].startswith("synthetic:")
    assert abs(float(other["image"].mean())) < 1 and float(other["image"].std()) > 0.3  # normalised as real images are


def test_classes_are_matched_by_name(data, tasks):
    """The table lists white before grey, the task the other way round."""
    source = LabelMapSource(data(patch=(40, 40, 40), foreground_prob=0, **QUIET), tasks, num_channels=1)
    target = source.draw(0, np.random.default_rng(0))["targets"]["tissue"]
    label_map = source.maps[0]
    names = [source.maps.table.classes[k] for k in label_map.class_of]
    wanted = {tasks["tissue"].classes.index(name) for name in names}
    assert set(target.unique().tolist()) == wanted == {0, 1, 2}
    middle = target[20, 20, 20 - 7 : 20 + 8].tolist()
    assert middle[0] == middle[-1] == tasks["tissue"].classes.index("white")  # around the ventricle, which is background


def test_dice_decide_everything_but_the_anatomy(data, tasks):
    source = LabelMapSource(data(), tasks, num_channels=1)
    draws = [source.draw(index, np.random.default_rng(seed)) for index, seed in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert torch.equal(draws[0]["image"], draws[1]["image"])
    assert not torch.equal(draws[0]["image"], draws[2]["image"])
    assert [d["subject_id"] for d in draws[::3]] == ["synthetic:one", "synthetic:three"]


def test_synthetic_patches_are_varied_as_real_ones_are(data, tasks):
    """The variation's dice come before those of the synthesis: drawn and applied by hand, they give what `draw` gives."""
    config = data(augment=True, flip_axes=[0], foreground_prob=0, **QUIET)
    source = LabelMapSource(config, tasks, num_channels=2)
    moved = 0
    for seed in range(6):
        drawn, rng = source.draw(0, np.random.default_rng(seed)), np.random.default_rng(seed)
        centre_mm = source._centre_mm(rng, source.maps[0])
        params = sample_params(
            rng,
            shape=config.patch,
            spacing_mm=(1, 1, 1),
            num_channels=2,
            strength=config.augment.strength,
            prob=config.augment.prob.model_dump(),
            flip_axes=[0],
        )
        window = window_of(params, [3 * n for n in config.patch], start=config.patch)
        image, labels = source._synthesize(rng, source.maps[0], window.box, centre_mm)
        image, labels = apply_to_box(image, labels, params, window, fill=float(image.min()))
        assert torch.equal(drawn["image"], image)
        assert torch.equal(drawn["targets"]["tissue"], source._class[labels["tissue"].long()])
        moved += params.is_spatial
    assert moved, "none of the six was moved"


def test_what_a_turn_brings_in_is_synthetic_too(data, tasks, monkeypatch):
    """The middle of an anatomy of one class, turned by up to 45 degrees: no voxel of background comes in at the corners."""
    off = {knob: 0.0 for knob in KNOBS if knob not in ("rotate_deg", "elastic_grid_mm")}
    config = data(patch=(12, 12, 12), augment=off | {"rotate_deg": 45.0, "prob": {"affine": 1.0}}, **QUIET)
    source = LabelMapSource(config, tasks, num_channels=1)
    label_map = source.maps[0]
    row = int(np.flatnonzero(label_map.class_of == 1)[0])
    source.maps._cache[0] = dataclasses.replace(label_map, rows=torch.full_like(label_map.rows, row))
    monkeypatch.setattr(source, "_centre_mm", lambda rng, one: one.size_mm / 2)
    for seed in range(4):
        assert (source.draw(0, np.random.default_rng(seed))["targets"]["tissue"] == source._class[1]).all()


def test_crops_are_centred_on_every_class_alike(data, tasks):
    source = LabelMapSource(data(patch=(8, 8, 8), foreground_prob=1, **QUIET), tasks, num_channels=1)
    label_map = source.maps[0]
    seen = []
    for seed in range(200):
        at = (source._centre_mm(np.random.default_rng(seed), label_map) / label_map.spacing_mm).astype(int)
        seen.append(int(label_map.class_of[label_map.rows[tuple(at + 1)]]))
    assert set(seen) == {1, 2} and 60 < seen.count(1) < 140


def test_patches_stay_within_the_map_where_they_can(data, tasks):
    source = LabelMapSource(data(patch=(16, 200, 16)), tasks, num_channels=1)
    label_map = source.maps[0]
    for seed in range(50):
        centre = source._centre_mm(np.random.default_rng(seed), label_map)
        assert centre[1] == label_map.size_mm[1] / 2
        assert (centre[[0, 2]] >= 8).all() and (centre[[0, 2]] <= label_map.size_mm[[0, 2]] - 8).all()


@pytest.mark.parametrize(("share", "num_synthetic"), [(0.5, 6), (0.25, 2), (0.75, 18), (0.01, 1)])
def test_an_epoch_holds_every_subject_once_and_the_share(data, real, tasks, share, num_synthetic):
    source = with_synthesis(real(data()), data(share=share), tasks, num_channels=2)
    assert len(source) == 6 + num_synthetic
    ids = [source.draw(i, np.random.default_rng(i))["subject_id"] for i in range(6)]
    assert ids == [f"sub-{i:03d}" for i in range(6)]
    assert [source.is_synthetic(i) for i in range(len(source))] == [False] * 6 + [True] * num_synthetic
    others = [source.draw(i, np.random.default_rng(i))["subject_id"] for i in range(6, len(source))]
    names = ["synthetic:one", "synthetic:three", "synthetic:two"]  # in the order of their files, in turn
    assert others == [names[i % 3] for i in range(num_synthetic)]


def test_who_has_a_label_is_known_without_drawing(data, real, tasks):
    source = with_synthesis(real(data()), data(), tasks, num_channels=2)
    assert [source.has_label(2, task) for task in tasks] == [True, True, False]
    assert [source.has_label(7, task) for task in tasks] == [True, False, False]


def test_without_synthesis_the_line_is_the_shards(data, real, tasks):
    config = data().model_copy(update={"synthesis": None})
    source = with_synthesis(real(config), config, tasks, num_channels=2)
    assert isinstance(source, MixedSource) and len(source) == 6 and not source.is_synthetic(5)
    assert source.draw(5, np.random.default_rng(0))["subject_id"] == "sub-005"


def test_what_a_user_can_get_wrong(data, real, tasks, label_folder):
    with pytest.raises(InputError, match=r"data\.synthesis\.task = 'tisue'.*did you mean 'tissue'"):
        LabelMapSource(data(task="tisue"), tasks, num_channels=1)
    two = {**tasks, "other": TaskConfig(kind="segmentation", classes=["background", "grey", "white"])}
    with pytest.raises(InputError, match=r"2 segmentation tasks.*tissue, other"):
        LabelMapSource(data(), two, num_channels=1)
    with pytest.raises(InputError, match="0 segmentation tasks"):
        LabelMapSource(data(), {"age": tasks["age"]}, num_channels=1)
    (label_folder / "labels.yaml").write_text("classes: {whte: [2]}")
    with pytest.raises(InputError, match=r"class 'whte' is none of task 'tissue'.*did you mean 'white'"):
        LabelMapSource(data(), tasks, num_channels=1)
    with pytest.raises(InputError, match=r"data\.synthesis\.labels is not set"):
        LabelMapSource(data().model_copy(update={"synthesis": SynthesisConfig()}), tasks, num_channels=1)
    with pytest.raises(InputError, match="no such folder"):
        LabelMapSource(data().model_copy(update={"synthesis": SynthesisConfig(labels="absent")}), tasks, num_channels=1)


def test_the_source_goes_into_worker_processes(data, tasks):
    import pickle

    source = LabelMapSource(data(), tasks, num_channels=1)
    copy = pickle.loads(pickle.dumps(source))
    assert torch.equal(copy.draw(1, np.random.default_rng(3))["image"], source.draw(1, np.random.default_rng(3))["image"])
    assert LabelMaps(source.maps.folder)[1].name == copy.maps[1].name
