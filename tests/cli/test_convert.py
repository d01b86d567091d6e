"""`mri-ds convert` and `mri-ds train --resume` on folders with nothing to work on. What they do: distributed/test_elastic.py."""

import json

import pytest
from commands import refusal

from mri_ds.cli.resume import launch_of
from mri_ds.errors import InputError
from mri_ds.training.checkpoint import folder as on_disk
from mri_ds.training.checkpoint.writer import write


@pytest.fixture
def run(tmp_path):
    """A run folder with one complete checkpoint, of step 10, that holds no weights."""
    part = tmp_path / "checkpoints/step000010.part"
    part.mkdir(parents=True)
    on_disk.commit(part, {"a.pt": write(part / "a.pt", [1])}, {"step": 10})
    return tmp_path


def test_a_format_that_is_none(run):
    assert "did you mean 'safetensors'" in refusal("convert", run, "--to", "safetensor")


def test_a_folder_without_checkpoints(tmp_path):
    assert "holds no complete checkpoint" in refusal("convert", tmp_path)


def test_a_step_that_no_checkpoint_is_of(run):
    line = refusal("convert", run, "--step", "7")
    assert "no complete checkpoint of step 7" in line and "choose one of 10" in line


def test_a_damaged_file_is_named(run):
    (run / "checkpoints/step000010/a.pt").write_bytes(b"")
    assert "a.pt has 0 bytes" in refusal("convert", run)


def test_nothing_is_resumed_that_was_not_started(tmp_path):
    assert "is no run to resume" in refusal("train", "--resume", tmp_path)
    (tmp_path / "launch.json").write_text("[]")
    with pytest.raises(InputError, match=r"no sound launch\.json"):
        launch_of(tmp_path)


def test_what_a_run_was_started_with(tmp_path):
    (tmp_path / "launch.json").write_text(json.dumps({"scale": "tiny", "data": "/data/shards"}))
    launch = launch_of(tmp_path)
    assert (launch.scale, str(launch.data)) == ("tiny", "/data/shards")
    assert launch.config == tmp_path / "config.yaml" and launch.ds_config == tmp_path / "ds_config.given.json"
