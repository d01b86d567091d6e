"""`auto` micro-batch: all at once where there is room, less where there is not, the same again when resumed."""

import json
from pathlib import Path

import pytest
import torch

from mri_ds.config import TaskConfig, load_config
from mri_ds.errors import InputError
from mri_ds.training import ds_config, micro_batch

ROOT = Path(__file__).resolve().parents[2]
RAW = ds_config.read(ROOT / "ds_configs/tiny.json")


@pytest.fixture(autouse=True)
def one_rank(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")


def config_of(*sets):
    config = load_config(scale="tiny", overrides=["data.patch=[16, 16, 16]", "training.global_batch=12", *sets])
    config.tasks = {"ball": TaskConfig(kind="segmentation", classes=["background", "ball"])}
    return config


def choose(config, run_dir, raw=RAW):
    resolved = ds_config.resolve(raw, config, world_size=1)
    out = micro_batch.choose(raw, resolved, config, run_dir)
    assert out["train_micro_batch_size_per_gpu"] * out["gradient_accumulation_steps"] == config.training.global_batch
    return out["train_micro_batch_size_per_gpu"]


@pytest.fixture
def small_device(monkeypatch):
    """small_device(limit): a device whose trials run out of memory above `limit` subjects, and whose plan does not know it."""
    tried = []

    def make(limit):
        def shortage(trial):
            tried.append(trial.micro_batch)
            return "out of memory" if trial.micro_batch > limit else ""

        monkeypatch.setattr(micro_batch, "shortage", shortage)
        monkeypatch.setattr(micro_batch, "free_bytes", lambda: 700 * 10**6)
        return tried

    return make


def test_everything_at_once_where_there_is_room(tmp_path, small_device, monkeypatch):
    tried = small_device(0)
    monkeypatch.setattr(micro_batch, "free_bytes", lambda: 2**40)
    assert choose(config_of(), tmp_path) == 12
    assert tried == []  # nothing is tried where so much is free


def test_halves_until_it_fits_records_it_and_keeps_it(tmp_path, small_device):
    tried = small_device(3)
    assert choose(config_of(), tmp_path) == 3
    assert tried == [12, 6, 3]
    told = json.loads((tmp_path / "micro_batch.json").read_text())
    assert told["micro_batch"] == 3
    assert told["tried"] == [{"micro_batch": n, "outcome": "out of memory"} for n in (12, 6)]
    del tried[:]
    assert choose(config_of(), tmp_path) == 3
    assert tried == []  # a resumed run keeps what it had
    assert choose(config_of("training.global_batch=24"), tmp_path) == 3
    assert tried == [24, 12, 6, 3]  # another global batch is another question


def test_the_plan_is_where_it_starts(tmp_path, small_device, monkeypatch):
    """With less memory free than twelve subjects need by the plan, twelve are not tried."""
    tried = small_device(100)
    needs = micro_batch._states(config_of(), micro_batch.layout_of(resolved_of(config_of()), nodes=1, slots=1), 12).peak
    monkeypatch.setattr(micro_batch, "free_bytes", lambda: needs)
    assert choose(config_of(), tmp_path) == tried[0] < 12


def resolved_of(config):
    return ds_config.resolve(RAW, config, world_size=1)


def test_not_even_one_is_refused(tmp_path, small_device):
    small_device(0)
    with pytest.raises(InputError, match=r"one subject does not fit.*data\.patch"):
        choose(config_of(), tmp_path)


def test_a_number_in_the_json_is_left_alone(tmp_path, small_device):
    tried = small_device(0)
    assert choose(config_of(), tmp_path, {**RAW, "train_micro_batch_size_per_gpu": 4}) == 4
    assert tried == [] and not (tmp_path / "micro_batch.json").exists()


def test_a_step_that_runs_out_makes_the_next_start_smaller(tmp_path):
    config = config_of()
    with (
        pytest.raises(RuntimeError, match="goes on with 6"),
        micro_batch.noting_out_of_memory(RAW, resolved_of(config), tmp_path),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert choose(config, tmp_path) == 6
    with pytest.raises(RuntimeError, match="another fault"), micro_batch.noting_out_of_memory(RAW, resolved_of(config), tmp_path):
        raise RuntimeError("another fault")
