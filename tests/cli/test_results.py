"""`mri-ds evaluate` and `mri-ds predict` on an untrained network: everything but the quality of its figures."""

import json
from pathlib import Path

import nibabel as nib
import pytest
import torch
from commands import call, refusal
from safetensors.torch import save_file

from mri_ds.config import dump_config, load_config


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with subjects/, shards/ and run/: as training leaves it, with the weights it starts from."""
    from mri_ds.data.shards import read_manifest
    from mri_ds.mri_network import BaseMRINet
    from mri_ds.training.loop import complete

    folder = tmp_path_factory.mktemp("made")
    assert call("synthesize", "--subjects", "4", "--size", "32", "--out", folder / "subjects").exit_code == 0
    assert call("shard", folder / "subjects", "--out", folder / "shards", "--folds", "2").exit_code == 0
    manifest = read_manifest(folder / "shards")
    config = complete(load_config(scale="tiny"), manifest, where=folder)
    torch.manual_seed(0)
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").write_text(dump_config(config))
    (folder / "run" / "manifest.json").write_text(manifest.model_dump_json())
    save_file(BaseMRINet(config.model, config.tasks).state_dict(), folder / "run" / "model.safetensors")
    return folder


def test_evaluate_prints_one_object_and_draws(made: Path, tmp_path: Path) -> None:
    picture = tmp_path / "pictures" / "case.png"
    result = call("evaluate", "--checkpoint", made / "run", "--data", made / "shards", "--picture", picture, "--json")
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert set(figures["tasks"]) == {"tissue", "lesion", "age"}
    assert figures["num_subjects"] == 2
    assert figures["picture"] == str(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "evaluate: 2/2" in result.stderr
    files = {name: Path(path) for name, path in figures["files"].items()}
    assert sorted(files) == ["classes", "evaluation", "strata", "subjects", "tasks"]
    assert all(path.parent == made / "run" / "evaluation" for path in files.values())
    assert json.loads(files["evaluation"].read_text())["tasks"] == figures["tasks"]
    assert files["subjects"].read_text().count("\n") > 2 * len(figures["tasks"])


def test_evaluate_tells_people_a_table(made: Path) -> None:
    result = call("evaluate", "--checkpoint", made / "run", "--data", made / "shards", "--split", "train")
    assert result.exit_code == 0, result.output
    assert "mean absolute error" in result.stdout and "constant" in result.stdout
    assert (made / "run" / "evaluation-train" / "tasks.csv").is_file(), "beside the held-out results, not over them"


def test_predict_writes_on_the_inputs_own_grid(made: Path, tmp_path: Path) -> None:
    """Both channels of two subjects are named: each subject is predicted once."""
    images = sorted((made / "subjects" / "images").iterdir())
    subjects = sorted({path.name.rsplit("_", 1)[0] for path in images})[:2]
    chosen = [path for path in images if path.name.rsplit("_", 1)[0] in subjects]
    assert len(chosen) > len(subjects)
    result = call("predict", "--checkpoint", made / "run", "--output", tmp_path / "out", "--json", "--input", *chosen)
    assert result.exit_code == 0, result.output
    predicted = json.loads(result.stdout)["subjects"]
    assert [one["subject_id"] for one in predicted] == subjects
    for one, subject in zip(predicted, subjects):
        label = nib.load(one["files"]["tissue"])
        image = nib.load(next(path for path in chosen if path.name.startswith(subject)))
        assert label.shape == image.shape
        assert (label.affine == image.affine).all()


def test_two_subjects_of_one_name_are_refused(made: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for path in sorted((made / "subjects" / "images").iterdir())[:2]:
            (tmp_path / folder / path.name).write_bytes(path.read_bytes())
    inputs = [sorted((tmp_path / folder).iterdir())[0] for folder in ("a", "b")]
    line = refusal("predict", "--checkpoint", made / "run", "--output", tmp_path / "out", "--input", *inputs)
    assert f"would overwrite the results of {inputs[0]}" in line


def test_no_run(made: Path, tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    assert str(absent) in refusal("evaluate", "--checkpoint", absent, "--data", made / "shards")
    assert str(absent) in refusal("predict", "--checkpoint", absent, "--input", "x.nii.gz", "--output", tmp_path / "out")


def test_no_shards(made: Path, tmp_path: Path) -> None:
    assert str(tmp_path) in refusal("evaluate", "--checkpoint", made / "run", "--data", tmp_path)


def test_wrong_readers(made: Path) -> None:
    where = ("--checkpoint", made / "run", "--data", made / "shards")
    assert "write it as --reader tissue=tissue_b" in refusal("evaluate", *where, "--reader", "tissue")
    assert "no further labels tissue_b" in refusal("evaluate", *where, "--reader", "tissue=tissue_b")


def test_no_such_split(made: Path) -> None:
    line = refusal("evaluate", "--checkpoint", made / "run", "--data", made / "shards", "--split", "tset")
    assert "tset" in line


def test_missing_image(made: Path, tmp_path: Path) -> None:
    line = refusal("predict", "--checkpoint", made / "run", "--input", tmp_path / "absent.nii.gz", "--output", tmp_path / "out")
    assert str(tmp_path / "absent.nii.gz") in line
