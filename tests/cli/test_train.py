"""`mri-ds train`: which scale, JSON and folders it settles on, and how it answers what a user can get wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
from commands import call, refusal

from mri_ds.cli.train import DS_CONFIGS


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple, dict]]:
    """What `training.loop.train` was called with, in place of training."""
    calls: list[tuple[tuple, dict]] = []

    def record(*args: Any, **kwargs: Any) -> dict[str, Any]:
        calls.append((args, kwargs))
        return {"steps": 3}

    monkeypatch.setattr("mri_ds.training.loop.train", record)
    monkeypatch.setattr("mri_ds.training.local_ranks.choose", lambda global_batch: 1)  # whatever this machine has
    return calls


def test_scale_comes_from_the_json_and_names_the_run(trained: list, tmp_path: Path) -> None:
    (tmp_path / "xl.json").write_text("{}")
    assert call("train", "--ds_config", tmp_path / "xl.json").exit_code == 0
    assert trained == [
        ((None, [], "xl", tmp_path / "xl.json", Path("shards"), Path("runs/xl")), {"ds_overrides": [], "profile": ""})
    ]


def test_scale_option_wins_over_the_json(trained: list, tmp_path: Path) -> None:
    (tmp_path / "xl.json").write_text("{}")
    call(
        "train", "--ds-config", tmp_path / "xl.json", "--scale", "tiny", "--data", "d", "--run", "r", "--set", "training.steps=2"
    )
    assert trained == [
        ((None, ["training.steps=2"], "tiny", tmp_path / "xl.json", Path("d"), Path("r")), {"ds_overrides": [], "profile": ""})
    ]


def test_scale_of_the_yaml_without_a_json(trained: list, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("model: {scale: tiny}")
    call("train", "--config", tmp_path / "run.yaml")
    assert trained[0][0][2:4] == ("tiny", DS_CONFIGS / "tiny.json")


def test_ds_writes_over_the_json(tmp_path: Path) -> None:
    items = ["zero_optimization.stage=2", "zero_optimization.offload_optimizer={device: cpu}", "fp16.enabled=false"]
    options = [part for item in items for part in ("--ds", item)]
    done = call("train", "--scale", "tiny", "--data", tmp_path, "--resolve-only", *options)
    assert done.exit_code == 0, done.stderr
    resolved = json.loads(done.stdout)["ds_config"]
    assert resolved["zero_optimization"]["stage"] == 2
    assert resolved["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("zero_optimization.stge=2", "unknown key 'zero_optimization.stge'. Fix: did you mean 'stage'?"),
        ("training.lr=1", "'training.lr' is science. Fix: set it in the YAML, or with --set."),
        ("expert_parallel.backend=native", "[native-zero3]"),
    ],
)
def test_a_wrong_ds_is_one_line(item: str, words: str, tmp_path: Path) -> None:
    assert words in refusal("train", "--scale", "tiny", "--data", tmp_path, "--resolve-only", "--ds", item)


def test_launchers_local_rank_is_taken_in_both_spellings(trained: list) -> None:
    assert call("train", "--local_rank=1", "--scale", "tiny").exit_code == 0
    assert call("train", "--local-rank", "1", "--scale", "tiny").exit_code == 0
    assert "rank" not in call("train", "--help").stdout.replace("ranks", "")


def test_only_the_first_rank_prints_the_result(trained: list, monkeypatch: pytest.MonkeyPatch) -> None:
    assert json.loads(call("train", "--scale", "tiny", "--json").stdout) == {"steps": 3}
    monkeypatch.setenv("RANK", "1")
    assert call("train", "--scale", "tiny", "--json").stdout == ""


@pytest.mark.parametrize("scale", ["tiny", "small", "base", "large", "xl"])
def test_every_ds_config_resolves_for_four_ranks(scale: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`deepspeed --num_nodes 4 launch/train.py --ds_config ds_configs/xl.json`, as far as the network."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    result = call("train", "--ds_config", DS_CONFIGS / f"{scale}.json", "--set", "training.steps=200", "--resolve-only")
    assert result.exit_code == 0, result.output
    resolved = json.loads(result.stdout)
    assert resolved["run"]["model"]["scale"] == scale
    assert resolved["run"]["training"]["steps"] == 200
    ds = resolved["ds_config"]
    global_batch = resolved["run"]["training"]["global_batch"]
    assert ds["train_micro_batch_size_per_gpu"] * ds["gradient_accumulation_steps"] * 4 == global_batch
    assert '"auto"' not in json.dumps(ds)


def test_ranks_of_ones_own_are_resolved_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")  # so that it is put back
    result = call("train", "--scale", "tiny", "--ranks", "2", "--resolve-only")
    assert json.loads(result.stdout)["ds_config"]["train_micro_batch_size_per_gpu"] == 2


@pytest.mark.parametrize("option", ["--ranks", "--restarts"])
def test_a_launchers_rank_starts_no_ranks(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    assert f"{option}: is for ranks that mri-ds starts itself" in refusal("train", "--scale", "tiny", option, "2")


def test_skip_corrupt_is_the_override() -> None:
    for options, wanted in (([], False), (["--skip-corrupt"], True), (["--skip-corrupt", "--set", "training.steps=3"], True)):
        result = call("train", "--scale", "tiny", *options, "--resolve-only")
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["run"]["data"]["skip_unreadable"] is wanted


def test_unknown_scale() -> None:
    assert "unknown scale 'smal'" in refusal("train", "--scale", "smal")


def test_misspelt_yaml_key(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("training: {setps: 3}")
    line = refusal("train", "--config", tmp_path / "run.yaml", "--scale", "tiny")
    assert f"{tmp_path / 'run.yaml'}: unknown key 'training.setps'" in line
    assert "did you mean 'steps'?" in line


def test_misspelt_set_key() -> None:
    line = refusal("train", "--set", "trainng.steps=3", "--scale", "tiny")
    assert "'trainng'" in line and "did you mean 'training'?" in line


def test_set_without_a_value() -> None:
    assert "training.steps" in refusal("train", "--set", "training.steps", "--scale", "tiny")


@pytest.mark.parametrize("text", ["training: [", "- a\n- b", "\x00\xff"], ids=["syntax", "list", "binary"])
def test_config_that_is_not_a_yaml_mapping(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.yaml").write_bytes(text.encode("latin-1"))
    assert str(tmp_path / "run.yaml") in refusal("train", "--config", tmp_path / "run.yaml")


@pytest.mark.parametrize("what", ["absent", "a folder"])
def test_config_that_cannot_be_read(tmp_path: Path, what: str) -> None:
    path = tmp_path / "absent.yaml" if what == "absent" else tmp_path
    assert str(path) in refusal("train", "--config", path)


def test_json_that_is_absent_or_names_no_scale(tmp_path: Path) -> None:
    assert "no such file" in refusal("train", "--ds_config", tmp_path / "small.json")
    (tmp_path / "mine.json").write_text("{}")
    line = refusal("train", "--ds_config", tmp_path / "mine.json")
    assert "is not named after a scale" in line and "--scale" in line


def test_misspelt_json_key(tmp_path: Path) -> None:
    (tmp_path / "tiny.json").write_text('{"zero_optimisation": {"stage": 3}}')
    line = refusal("train", "--ds_config", tmp_path / "tiny.json", "--resolve-only")
    assert "zero_optimisation" in line and "zero_optimization" in line


def test_no_shards_in_the_folder(tmp_path: Path) -> None:
    assert str(tmp_path) in refusal("train", "--scale", "tiny", "--data", tmp_path, "--run", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_folder_of_shards(tmp_path: Path) -> None:
    assert str(tmp_path / "absent") in refusal(
        "train", "--scale", "tiny", "--data", tmp_path / "absent", "--run", tmp_path / "run"
    )


def test_a_world_that_the_experts_cannot_be_divided_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    (tmp_path / "tiny.json").write_text('{"expert_parallel": {"enabled": true, "autoep_size": 3}}')
    line = refusal("train", "--ds_config", tmp_path / "tiny.json", "--set", "training.global_batch=3", "--resolve-only")
    assert "4 experts" in line and "3 ranks" in line


def test_unknown_task_in_the_yaml(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("tasks: {bal: {kind: segmentation, classes: [background, ball]}}")
    line = refusal("train", "--scale", "tiny", "--config", tmp_path / "run.yaml", "--data", shards, "--run", tmp_path / "run")
    assert "task 'bal' is not in the shards" in line and "did you mean 'ball'?" in line
