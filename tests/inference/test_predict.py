"""Prediction from files: geometry against nibabel, preparation against the training loader, weights, channels, bad input."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, ornt_transform
from safetensors.torch import load_file, save_file
from torch import nn

from mri_ds.config import DataConfig, RunConfig, TaskConfig, dump_config, load_config, validate
from mri_ds.data.index import ShardDataset
from mri_ds.data.layouts import find_dataset
from mri_ds.data.loader import make_loader
from mri_ds.data.manifest import Fingerprint, Manifest, write_manifest
from mri_ds.data.shards import write_shards
from mri_ds.errors import InputError
from mri_ds.inference.predict import find_channels, predict_file
from mri_ds.inference.run import Run, load_run
from mri_ds.inference.subject import ClassScores, LabelMap, Value, predict_sample
from mri_ds.metrics.overlap import dice
from mri_ds.mri_network import BaseMRINet
from mri_ds.sample import Sample

SPACING = (0.9, 1.1, 2.0)
TASKS = {
    "bright": TaskConfig(kind="segmentation", classes=["dark", "bright"]),
    "kind": TaskConfig(kind="classification", classes=["a", "b", "c"]),
    "size": TaskConfig(kind="regression", unit="mL"),
}


class Threshold(nn.Module):
    """Answers are known: voxels over the mean of the last channel are bright, kind b is likeliest, size is the spacing's sum."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def forward(self, image: torch.Tensor, spacing_mm: torch.Tensor) -> dict[str, torch.Tensor]:
        self.seen.append(image)
        kind = torch.tensor([0.0, 2.0, 1.0]).log1p().expand(len(image), 3)  # probabilities 1, 3, 2 sixths
        return {"bright": torch.stack([-image[:, -1], image[:, -1]], dim=1), "kind": kind, "size": spacing_mm.sum(dim=1)}


def make_run(channels: tuple[str, ...] = ("T1w",), spacing_mm=SPACING, patch=(8, 8, 8)) -> Run:
    config = RunConfig(data=DataConfig(spacing_mm=spacing_mm, patch=patch), tasks=TASKS)
    return Run(Threshold(), config, list(channels), torch.device("cpu"))


def bright_boxes(shape=(9, 12, 10)) -> np.ndarray:
    """A canonical mask without any symmetry."""
    mask = np.zeros(shape, dtype=np.uint8)
    mask[1:4, 2:9, 3:5] = mask[5:8, 1:3, 4:9] = 1
    return mask


def tilted_affine(spacing=SPACING) -> np.ndarray:
    """Canonical but oblique: turned by 20 degrees about x and 10 about z."""
    a, b = np.deg2rad(20), np.deg2rad(10)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag(spacing)
    affine[:3, 3] = [-30, 12, 5]
    return affine


def as_orientation(mask: np.ndarray, codes: str) -> nib.Nifti1Image:
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    return nib.Nifti1Image(mask, tilted_affine()).as_reoriented(turn)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LIA", "PIR", "ASL", "SRP"])
def test_labels_come_back_on_the_input_grid(codes, tmp_path):
    truth = as_orientation(bright_boxes(), codes)
    voxels = np.asarray(truth.dataobj)
    nib.save(nib.Nifti1Image((100 + 50 * voxels).astype(np.float32), truth.affine), tmp_path / "sub-1.nii.gz")
    result = predict_file(make_run(), tmp_path / "sub-1.nii.gz", tmp_path / "out")
    written = nib.load(result["files"]["bright"])
    source = nib.load(tmp_path / "sub-1.nii.gz")
    assert nib.aff2axcodes(written.affine) == tuple(codes)
    np.testing.assert_array_equal(np.asarray(written.dataobj), voxels)
    np.testing.assert_allclose(written.affine, source.affine, atol=1e-5)


def test_scores_return_from_another_spacing(tmp_path):
    # a hill of light, seen by the network on a grid half as fine, in overlapping windows of 8 voxels; bright is what lies above
    # its mean height, a ball whose border no grid should move
    grid = np.indices((30, 32, 28)) - np.array([15, 16, 14]).reshape(3, 1, 1, 1)
    height = 100 - np.sqrt((grid**2).sum(axis=0))
    ball = height > height.mean()
    nib.save(nib.Nifti1Image(height.astype(np.float32), np.eye(4)), tmp_path / "ball.nii.gz")
    run = make_run(spacing_mm=(2.0, 2.0, 2.0))
    result = predict_file(run, tmp_path / "ball.nii.gz", tmp_path)
    labels = np.asarray(nib.load(result["files"]["bright"]).dataobj) == 1
    assert labels.shape == ball.shape and len(run.net.seen) == 3 * 3 * 3  # 15 x 16 x 14 voxels of 2 mm
    assert dice(ball, labels) > 0.98
    assert result["tasks"]["size"]["value"] == pytest.approx(6.0)  # the network hears of its own grid


def test_results_are_in_the_json_and_nothing_else_is_left(tmp_path):
    mask = bright_boxes()
    nib.save(nib.Nifti1Image((100 + 50 * mask).astype(np.float32), tilted_affine()), tmp_path / "sub-1_T1w.nii.gz")
    result = predict_file(make_run(), tmp_path / "sub-1_T1w.nii.gz", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["sub-1.json", "sub-1.png", "sub-1_bright.nii.gz"]
    told = json.loads((tmp_path / "out" / "sub-1.json").read_text())
    assert told == {"subject_id": "sub-1", "tasks": result["tasks"]}
    assert told["tasks"]["bright"]["volume_ml"]["bright"] == pytest.approx(mask.sum() * 0.9 * 1.1 * 2.0 / 1000, abs=1e-4)
    assert told["tasks"]["kind"]["class"] == "b"
    assert told["tasks"]["kind"]["probabilities"] == pytest.approx({"a": 1 / 6, "b": 3 / 6, "c": 2 / 6}, abs=1e-6)
    assert told["tasks"]["size"] == {"kind": "regression", "value": pytest.approx(4.0, abs=1e-5), "unit": "mL"}


def test_a_speck_is_dropped_told_of_and_kept_on_request(tmp_path):
    """Training never showed a part of `bright` below 0.05 ml (25 voxels); one bright voxel of 0.002 ml lies alone."""
    mask = bright_boxes()
    mask[0, 0, 0] = 1
    nib.save(nib.Nifti1Image((100 + 50 * mask).astype(np.float32), tilted_affine()), tmp_path / "sub-1.nii.gz")
    run = make_run()
    seen = {"smallest_part_ml": [0.0, 0.05], "class_presence": [1.0, 0.5]}
    run.config.tasks["bright"] = run.config.tasks["bright"].model_copy(update=seen)
    result = predict_file(run, tmp_path / "sub-1.nii.gz", tmp_path)
    kept = predict_file(run, tmp_path / "sub-1.nii.gz", tmp_path / "kept", keep_small_parts=True)
    voxels, everything = (np.asarray(nib.load(r["files"]["bright"]).dataobj) for r in (result, kept))
    assert voxels[0, 0, 0] == 0 and (everything == mask).all() and everything.sum() == voxels.sum() + 1
    assert result["tasks"]["bright"]["dropped_small_parts_ml"] == {"bright": pytest.approx(0.002, abs=1e-4)}
    assert kept["tasks"]["bright"]["dropped_small_parts_ml"] == {}


def write_dataset(folder: Path, num_subjects: int = 4) -> None:
    """Folder layout with one label map; images smaller than the patches used here."""
    rng = np.random.default_rng(0)
    mask = bright_boxes()
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    for i in range(num_subjects):
        image = (100 + 50 * mask + rng.normal(size=mask.shape)).astype(np.float32)
        nib.save(nib.Nifti1Image(image, tilted_affine()), folder / "images" / f"sub-{i}_T1w.nii.gz")
        nib.save(nib.Nifti1Image(mask, tilted_affine()), folder / "labels" / f"sub-{i}_bright.nii.gz")
    (folder / "participants.tsv").write_text("\n".join(["participant_id", *(f"sub-{i}" for i in range(num_subjects))]) + "\n")
    (folder / "dataset.yaml").write_text("tasks:\n  bright: {kind: segmentation, classes: [dark, bright]}\n")


@pytest.mark.parametrize("patch", [(16, 16, 16), (7, 13, 15)])
def test_the_network_is_shown_what_training_showed_it(patch, tmp_path):
    write_dataset(tmp_path / "data")
    write_shards(find_dataset(tmp_path / "data"), tmp_path / "shards", num_folds=2)
    dataset = ShardDataset(tmp_path / "shards", "test")
    run = make_run(spacing_mm=(1.2, 1.0, 1.7), patch=patch)
    data = run.config.data.model_copy(update={"augment": False, "num_workers": 0})
    tasks = {"bright": dataset.tasks["bright"]}
    batch = next(make_loader(dataset, data, tasks, seed=0, global_batch=1, micro_batch=1, rank=0, world_size=1))
    index = dataset.subject_ids.index(batch["subject_id"][0])
    predict_sample(run, dataset.read(index))
    assert len(run.net.seen) == 1
    torch.testing.assert_close(run.net.seen[0], batch["image"])


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run folder as training leaves it, with a real (untrained) network."""
    folder = tmp_path_factory.mktemp("run")
    scale = load_config(scale="tiny").model.model_copy(update={"token_stride": (4, 4, 4)})
    config = RunConfig(model=scale, data=DataConfig(spacing_mm=SPACING, patch=(16, 16, 16)), tasks=TASKS)
    torch.manual_seed(0)
    net = BaseMRINet(config.model, config.tasks)
    for parameter in net.parameters():  # an untrained head is all bias: make every weight count
        nn.init.normal_(parameter, std=0.2) if parameter.ndim > 1 else None
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.yaml").write_text(dump_config(config))
    fingerprint = Fingerprint(median_spacing_mm=SPACING, median_shape=(9, 12, 10))
    manifest = Manifest(
        format_version=1, layout="folder", channels=["T1w"], tasks=TASKS, splits={}, fingerprint=fingerprint, skipped=[]
    )
    write_manifest(manifest, folder / "manifest.json")
    return folder


def test_load_run_restores_the_network(run_dir):
    run = load_run(run_dir, device="cpu")
    assert run.channels == ["T1w"] and run.config == validate(run.config.model_dump()) and not run.net.training
    rng = np.random.default_rng(0)
    image = rng.normal(size=(1, 9, 12, 10)).astype(np.float32)
    sample = Sample(subject_id="s", image=image, affine=np.diag([*SPACING, 1]), spacing_mm=np.array(SPACING), targets={})
    first, again = predict_sample(run, sample), predict_sample(load_run(run_dir, device="cpu"), sample)
    labels, scores, value = first["bright"], first["kind"], first["size"]
    assert isinstance(labels, LabelMap) and isinstance(scores, ClassScores) and isinstance(value, Value)
    assert labels.labels.shape == (9, 12, 10) and labels.labels.dtype == np.int16 and set(np.unique(labels.labels)) == {0, 1}
    assert scores.probabilities.sum() == pytest.approx(1) and scores.class_name == ["a", "b", "c"][scores.probabilities.argmax()]
    np.testing.assert_array_equal(labels.labels, again["bright"].labels)
    assert value == again["size"] and np.isfinite(value.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.safetensors", "training has not finished; run the same train command again to resume"),
        ("config.yaml", "has no config.yaml"),
        ("manifest.json", "has no manifest.json"),
    ],
)
def test_an_unfinished_run_is_refused(run_dir, tmp_path, name, message):
    for file in run_dir.iterdir():
        if file.name != name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(InputError, match=message):
        load_run(tmp_path)


def test_weights_of_another_network_are_refused(run_dir, tmp_path):
    for file in run_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = load_config(tmp_path / "config.yaml", overrides=["model.embed_dim=64"])
    (tmp_path / "config.yaml").write_text(dump_config(config))
    with pytest.raises(InputError, match=r"model.safetensors: does not fit .*config.yaml"):
        load_run(tmp_path)
    (tmp_path / "config.yaml").write_bytes((run_dir / "config.yaml").read_bytes())
    weights = load_file(run_dir / "model.safetensors")
    left_out = sorted(weights)[0]
    save_file({name: tensor for name, tensor in weights.items() if name != left_out}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=f"Missing key.*{left_out}"):
        load_run(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(InputError, match="is not a safetensors file"):
        load_run(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="is not a manifest"):
        load_run(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        load_run(tmp_path / "nowhere")


def test_channels_from_siblings_equal_one_file_of_four_dimensions(tmp_path):
    mask = bright_boxes()
    noise = np.random.default_rng(1).normal(size=mask.shape)
    t1w, t2w = (noise + 9).astype(np.float32), (100 + 50 * mask).astype(np.float32)  # the network looks at the last channel
    nib.save(nib.Nifti1Image(t1w, tilted_affine()), tmp_path / "sub-1_T1w.nii.gz")
    nib.save(nib.Nifti1Image(t2w, tilted_affine()), tmp_path / "sub-1_T2w.nii.gz")
    nib.save(nib.Nifti1Image(np.stack([t1w, t2w], axis=3), tilted_affine()), tmp_path / "both.nii.gz")
    run = make_run(channels=("T1w", "T2w"))
    for path in ("sub-1_T1w.nii.gz", "sub-1_T2w.nii.gz", "both.nii.gz"):
        result = predict_file(run, tmp_path / path, tmp_path / path.removesuffix(".nii.gz"))
        assert result["subject_id"] == ("both" if path == "both.nii.gz" else "sub-1")
        np.testing.assert_array_equal(np.asarray(nib.load(result["files"]["bright"]).dataobj), mask)


def test_missing_and_surplus_channels_are_named(tmp_path):
    image = nib.Nifti1Image((100 + 50 * bright_boxes()).astype(np.float32), np.eye(4))
    nib.save(image, tmp_path / "sub-1_T1w.nii.gz")
    nib.save(image, tmp_path / "other.nii.gz")
    run = make_run(channels=("T1w", "T2w"))
    with pytest.raises(InputError, match=r"sub-1_T2w.nii.gz: no such file: channel T2w of subject sub-1"):
        predict_file(run, tmp_path / "sub-1_T1w.nii.gz", tmp_path)
    with pytest.raises(InputError, match=r"has 1 channel.*trained on 2 \(T1w, T2w\).*SUBJECT_T1w.nii.gz"):
        predict_file(run, tmp_path / "other.nii.gz", tmp_path)
    with pytest.raises(InputError, match=r"has 2 channel.*trained on 1 \(T1w\).*give a 3-D NIfTI of T1w"):
        nib.save(
            nib.Nifti1Image(np.random.default_rng(0).random((5, 6, 7, 2)).astype(np.float32), np.eye(4)), tmp_path / "two.nii.gz"
        )
        predict_file(make_run(), tmp_path / "two.nii.gz", tmp_path)
    assert not list(tmp_path.glob("*bright*"))


def test_subject_and_channel_are_read_from_the_name(tmp_path):
    for name in ("s_T1.nii", "s_post_T1.nii"):
        (tmp_path / name).touch()
    files = [tmp_path / "s_T1.nii", tmp_path / "s_post_T1.nii"]
    assert find_channels(files[0], ["T1", "post_T1"]) == find_channels(files[1], ["T1", "post_T1"]) == ("s", files)
    (tmp_path / "sub-1_T1w.nii.gz").touch()
    assert find_channels(tmp_path / "sub-1_T1w.nii.gz", ["T1w"]) == ("sub-1", [tmp_path / "sub-1_T1w.nii.gz"])
    assert find_channels(tmp_path / "scan.final.nii", ["T1w"]) == ("scan.final", [tmp_path / "scan.final.nii"])


@pytest.mark.parametrize(
    ("shape", "value", "message"), [((8, 8), 1.0, "2-D"), ((8, 8, 8), np.nan, "NaN"), ((8, 8, 8), 3.0, "constant")]
)
def test_unreadable_images_are_refused_before_anything_is_written(shape, value, message, tmp_path):
    nib.save(nib.Nifti1Image(np.full(shape, value, dtype=np.float32), np.eye(4)), tmp_path / "bad.nii.gz")
    with pytest.raises(InputError, match=message):
        predict_file(make_run(), tmp_path / "bad.nii.gz", tmp_path / "out")
    with pytest.raises(InputError, match="no such file"):
        predict_file(make_run(), tmp_path / "absent.nii.gz", tmp_path / "out")
    assert not (tmp_path / "out").exists()
