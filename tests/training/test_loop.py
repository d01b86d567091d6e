"""The run folder: what a run may change when it goes on, and what it may not."""

import json
from pathlib import Path

import pytest

from mri_ds.config import RunConfig, load_config
from mri_ds.data.manifest import read_manifest
from mri_ds.errors import InputError
from mri_ds.training.loop import HOW_READ, HOW_WATCHED, _prepare_run_folder


@pytest.fixture
def prepare(shards, tmp_path, monkeypatch):
    """prepare(sets) as a run of that configuration does it, in a folder that has checkpoints."""
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")

    def make(*sets: str) -> Path:
        config = load_config(overrides=list(sets), scale="tiny")
        _prepare_run_folder(tmp_path / "run", config, {"zero": 3}, read_manifest(shards))
        (tmp_path / "run/checkpoints").mkdir(exist_ok=True)
        return tmp_path / "run"

    return make


def test_how_data_are_read_may_change_on_the_way(prepare):
    prepare()
    run = prepare("data.num_workers=2", "data.skip_unreadable=true", "data.cache_dir=/cache", "data.cache_gib=1")
    assert load_config(run / "config.yaml").data.num_workers == 2
    assert json.loads((run / "ds_config.json").read_text()) == {"zero": 3}
    assert set(RunConfig().data.model_dump()) >= HOW_READ


def test_how_a_run_is_watched_may_change_on_the_way(prepare):
    prepare()
    run = prepare("training.validate_every=7", "training.log_every=1", "training.max_nonfinite=2", "training.wandb=trial")
    assert load_config(run / "config.yaml").training.validate_every == 7
    assert set(RunConfig().training.model_dump()) >= HOW_WATCHED


@pytest.mark.parametrize(
    "change",
    ["data.balance=size", "data.shuffle_shards=2", "training.seed=1", "training.global_batch=8", "data.foreground_prob=0"],
)
def test_what_is_shown_may_not(prepare, change):
    prepare()
    with pytest.raises(InputError, match="another configuration"):
        prepare(change)
