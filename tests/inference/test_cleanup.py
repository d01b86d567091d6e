"""The largest connected part alone: chosen where it raises Dice on held-out subjects, and followed by the predictor."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from networks import write_run
from torch import nn
from typer.testing import CliRunner

from mri_ds.cli.main import app
from mri_ds.config import TaskConfig
from mri_ds.errors import InputError
from mri_ds.inference import cleanup_choice
from mri_ds.inference.cleanup import clean_up, read_cleanup
from mri_ds.inference.run import load_run
from mri_ds.inference.subject import predict_sample
from mri_ds.sample import Sample

TASKS = {"tissue": TaskConfig(kind="segmentation", classes=["background", "organ", "spots"])}


class Bands(nn.Module):
    """Reads its answer off the image: organ is about 3.5 normalised, spots 8; background is the next best of organ."""

    def forward(self, image: torch.Tensor, spacing_mm: torch.Tensor) -> dict[str, torch.Tensor]:
        value = image[:, 0]
        return {"tissue": torch.stack([torch.full_like(value, 1.5), value.clamp(max=4.5), 2 * value - 6], dim=1)}


def volume(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(image, truth): an organ of one part with a false one beside it; spots of two true parts."""
    truth = np.zeros((24, 20, 18), dtype=np.uint8)
    truth[4:12, 4:12, 4:12] = 1
    truth[15:18, 4:7, 4:7] = truth[15:17, 12:15, 12:15] = 2
    seen = truth.copy()
    seen[20:22, 15:18, 2:5] = 1
    image = np.array([0.0, 40.0, 90.0])[seen] + np.random.default_rng(seed).normal(size=seen.shape)
    return image.astype(np.float32), truth


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """shards/ and run/, whose network is `Bands`."""
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    (data / "labels").mkdir()
    for number in range(4):
        image, truth = volume(number)
        nib.save(nib.Nifti1Image(image, np.eye(4)), data / f"images/s{number}_T1w.nii.gz")
        nib.save(nib.Nifti1Image(truth, np.eye(4)), data / f"labels/s{number}_tissue.nii.gz")
    (data / "participants.tsv").write_text("participant_id\n" + "".join(f"s{number}\n" for number in range(4)))
    (data / "dataset.yaml").write_text("tasks:\n  tissue: {kind: segmentation, classes: [background, organ, spots]}\n")
    assert CliRunner().invoke(app, ["shard", str(data), "--out", str(tmp_path / "shards"), "--folds", "2"]).exit_code == 0
    write_run(tmp_path / "run", spacing_mm=(1, 1, 1), tasks=TASKS)
    load = load_run

    def with_bands(path: Path) -> object:
        run = load(path, "cpu")
        return type(run)(**{**vars(run), "net": Bands()})

    monkeypatch.setattr(cleanup_choice, "load_run", with_bands)
    return tmp_path


def test_it_is_chosen_where_it_helps_and_then_followed(made):
    given = ["cleanup", "--checkpoint", str(made / "run"), "--data", str(made / "shards")]
    done = CliRunner().invoke(app, [*given, "--split", "test", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told == json.loads((made / "run/cleanup.json").read_text())
    assert told["keep_largest"] == {"tissue": ["organ"]} and told["subjects"] == 2 and told["split"] == "test"
    organ, spots = told["dice"]["tissue"]["organ"], told["dice"]["tissue"]["spots"]
    true, false = 8**3, 2 * 3 * 3
    assert organ == pytest.approx([2 * true / (2 * true + false), 1.0]) and spots[0] == 1 > spots[1]

    run = cleanup_choice.load_run(made / "run")
    image, truth = volume(9)
    sample = Sample(subject_id="s", image=image[None], affine=np.eye(4), spacing_mm=np.ones(3), targets={})
    found = predict_sample(run, sample)["tissue"]
    assert np.array_equal(found.labels, truth) and found.dropped_ml == {"organ": pytest.approx(0.018)}
    assert (predict_sample(run, sample, keep_small_parts=True)["tissue"].labels != truth).sum() == false


def test_it_is_not_chosen_on_what_was_trained_on(made):
    with pytest.raises(InputError, match="has seen the training subjects"):
        cleanup_choice.choose_cleanup(made / "run", made / "shards", split="train")
    with pytest.raises(InputError, match="has no validation split"):
        cleanup_choice.choose_cleanup(made / "run", made / "shards")
    (made / "run/cleanup.json").write_text('{"keep_largest": {"tissue": ["liver"]}}')
    with pytest.raises(InputError, match="names no classes of this run"):
        read_cleanup(made / "run", TASKS)


def test_what_is_dropped_becomes_the_next_best_class():
    labels = np.array([[[1, 1, 0, 1, 2]]], dtype=np.int16)
    second = np.array([[[0, 0, 0, 2, 0]]], dtype=np.int16)
    assert clean_up(labels, second, TASKS["tissue"], ["organ"], voxel_ml=0.5) == {"organ": 0.5}
    assert labels.tolist() == [[[1, 1, 0, 2, 2]]]
