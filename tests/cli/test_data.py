"""`mri-ds synthesize` and `mri-ds shard`: from nothing to shards, and what they refuse."""

import json
from pathlib import Path

import pytest
from commands import call, refusal


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("subjects")
    result = call("synthesize", "--subjects", "6", "--size", "32", "--seed", "1", "--out", folder)
    assert result.exit_code == 0, result.output
    assert "6 subjects" in result.stdout and "mri-ds shard" in result.stdout
    assert "synthesize: 6/6" in result.stderr
    return folder


def test_shards_hold_every_subject_once(subjects: Path, tmp_path: Path) -> None:
    result = call("shard", subjects, "--out", tmp_path, "--folds", "3", "--fold", "1", "--json")
    assert result.exit_code == 0, result.output
    manifest = json.loads(result.stdout)
    assert {name: split["num_samples"] for name, split in manifest["splits"].items()} == {"train": 4, "test": 2}
    assert set(manifest["tasks"]) == {"tissue", "lesion", "age"}
    assert json.loads((tmp_path / "manifest.json").read_text()) == manifest


def test_people_read_what_was_written(subjects: Path, tmp_path: Path) -> None:
    result = call("shard", subjects, "--out", tmp_path, "--folds", "3")
    assert result.exit_code == 0, result.output
    assert "4 train, 2 test subjects" in result.stdout
    assert "shard: 6/6, " in result.stderr and " volumes/s" in result.stderr


def test_lint_lists_what_is_wrong_and_fails(subjects: Path, tmp_path: Path) -> None:
    call("shard", subjects, "--out", tmp_path, "--folds", "3")
    result = call("lint", tmp_path)
    assert result.exit_code == 0 and result.stdout.splitlines()[-1] == "4 train, 2 test subjects: no error", result.output
    tar = tmp_path / "train-000000.tar"
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 1
    tar.write_bytes(bytes(data))
    result = call("lint", tmp_path)
    assert result.exit_code == 2 and "error: checksum: train-000000.tar" in result.stdout
    assert result.stderr.splitlines()[-1].startswith(f"error: {tmp_path}: ")
    result = call("lint", tmp_path, "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 2 and found["num_errors"] == len([f for f in found["findings"] if f["severity"] == "error"]) > 0
    assert "no shards here" in refusal("lint", tmp_path / "nowhere")


def test_a_bad_subject_stops_or_is_skipped(subjects: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "images").mkdir(parents=True)
    for path in subjects.rglob("*"):
        if path.is_file():
            target = source / path.relative_to(subjects)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
    broken = sorted((source / "images").iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:100])
    assert broken.name in refusal("shard", source, "--out", tmp_path / "a", "--strict", "--workers", "1")
    result = call("shard", source, "--out", tmp_path / "b")
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("skipped ")]
    assert "its file" in line and broken.name not in line


def test_no_dataset(tmp_path: Path) -> None:
    assert str(tmp_path / "absent") in refusal("shard", tmp_path / "absent", "--out", tmp_path / "shards")
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in refusal("shard", tmp_path / "empty", "--out", tmp_path / "shards")
    assert not (tmp_path / "shards").exists()


def test_a_fold_that_there_is_not(tmp_path: Path) -> None:
    assert "choose 0 to 4" in refusal("shard", tmp_path, "--out", tmp_path, "--fold", "5")


def test_synthesize_from_label_maps(tmp_path: Path) -> None:
    import nibabel as nib
    import numpy as np

    voxels = np.zeros((24, 24, 24), dtype=np.int16)
    voxels[4:20, 4:20, 4:20], voxels[8:16, 8:16, 8:16] = 3, 2
    (tmp_path / "maps").mkdir()
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "maps" / "a.nii.gz")
    result = call("synthesize", "--from-labels", tmp_path / "maps", "--out", tmp_path / "out", "--count", "2", "--size", "20")
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "out").glob("*/*.nii.gz"))) == 4
    assert "mri-ds shard" in result.stdout


def test_synthesize_from_a_folder_without_label_maps(tmp_path: Path) -> None:
    assert str(tmp_path) in refusal("synthesize", "--from-labels", tmp_path, "--out", tmp_path / "out", "--count", "1")
    assert not (tmp_path / "out").exists()
