"""The demo's course of events with its commands replaced: order, reuse, resuming, failures, and the SUMMARY line.

What the commands do has tests of its own; here each leaves only the files that the next one needs.
"""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import demo
import pytest
from run_folder import Failed

EVALUATION: dict[str, Any] = {
    "tasks": {
        "tissue": {
            "kind": "segmentation",
            "dice_mean": 0.75,
            "dice": {"grey": 0.9, "lesion": 0.6},
            "hd95_mm": {"grey": 1.0, "lesion": None},
            "num_scored": {"grey": 2, "lesion": 1},
            "num_missed": {"grey": 0, "lesion": 1},
            "num_false_alarm": {"grey": 0, "lesion": 0},
            "num_empty": {"grey": 0, "lesion": 1},
            "constant": {"dice_mean": 0.2, "dice": {"grey": 0.3, "lesion": 0.1}},
        },
        "lesion": {
            "kind": "classification",
            "balanced_accuracy": 0.8,
            "auc": 0.9,
            "confusion": [[1, 0], [0, 1]],
            "classes": ["none", "many"],
            "num_scored": 2,
            "constant": {"balanced_accuracy": 0.5, "auc": 0.5},
        },
        "age": {
            "kind": "regression",
            "mae": 4.0,
            "rmse": 5.0,
            "r": 0.8,
            "mae_constant": 12.0,
            "unit": "years",
            "num_scored": 2,
            "constant": {"mae": 12.0, "rmse": 15.0},
        },
    },
    "subjects": [{"subject_id": "sub-003"}],
    "num_subjects": 2,
}


class Commands:
    """In place of supervise.run: keeps what was asked and leaves the files that each command would."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.train_code, self.leaves_weights = 0, True

    def __call__(self, command: Sequence[str], *, cwd: Path, env: Any, stdout_to: Path | None = None, tick: Any = None) -> int:
        self.asked.append(list(command))
        given = dict(pairwise(command))
        if command[:2] == ["mri-ds", "shard"]:
            (cwd / given["--out"]).mkdir(parents=True, exist_ok=True)
            (cwd / given["--out"] / "manifest.json").write_text("{}")
        if command[0] == "deepspeed":
            (cwd / given["--run"] / "checkpoints").mkdir(parents=True, exist_ok=True)
            if self.leaves_weights:
                (cwd / given["--run"] / "model.safetensors").write_text("")
            return self.train_code
        if stdout_to is not None:
            stdout_to.write_text(json.dumps(EVALUATION))
        return 0

    @property
    def names(self) -> list[str]:
        return [command[0] if command[0] == "deepspeed" else command[1] for command in self.asked]


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    fake = Commands()
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    monkeypatch.setattr(demo.supervise, "run", fake)
    monkeypatch.setattr(demo, "held_out_image", lambda plan, evaluation: plan.dataset / "images" / "sub-003_T1w.nii.gz")
    return fake


def run_demo(*args: str) -> None:
    demo.demo(demo.plan_of(demo.parse(args)), setup_s=2.0)


ALL = ["synthesize", "shard", "deepspeed", "evaluate", "predict", "report"]


def test_stages_in_order_and_the_summary_as_the_last_line(
    commands: Commands, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_demo("--steps", "5")
    assert commands.names == ALL
    launched = " ".join(commands.asked[2])
    assert "--num_accelerators 2" in launched and "launch/train.py --ds_config ds_configs/small.json" in launched
    assert "--set=training.steps=5" in launched and "--data data/demo/shards --run runs/demo" in launched
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("SUMMARY ")
    summary = json.loads(last.removeprefix("SUMMARY "))
    assert summary["tasks"] == {
        "tissue": {"dice_mean": 0.75, "dice": {"grey": 0.9, "lesion": 0.6}},
        "lesion": {"balanced_accuracy": 0.8},
        "age": {"mae": 4.0, "mae_constant": 12.0},
    }
    assert list(summary["seconds"]) == ["setup", "data", "train", "evaluate", "total"]
    assert summary["seconds"]["setup"] == 2.0
    assert summary["seconds"]["total"] == pytest.approx(sum(list(summary["seconds"].values())[:4]), abs=0.25)
    assert json.loads((tmp_path / "runs/demo/summary.json").read_text()) == summary


def test_each_command_is_printed_before_it_runs(commands: Commands, capsys: pytest.CaptureFixture[str]) -> None:
    run_demo()
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("$ ")]
    assert len(shown) == len(commands.asked)
    for line, command in zip(shown, commands.asked):
        assert " ".join(command) in line


def test_again_after_completion_trains_anew_on_the_same_data(commands: Commands, capsys: pytest.CaptureFixture[str]) -> None:
    run_demo()
    commands.asked.clear()
    run_demo()
    assert commands.names == ["deepspeed", "evaluate", "predict", "report"]
    out = capsys.readouterr().out
    assert "is complete: starting afresh" in out and "data/demo/shards is up to date" in out


def test_other_subjects_are_made_when_asked_for(commands: Commands) -> None:
    run_demo()
    commands.asked.clear()
    run_demo("--subjects", "7")
    assert commands.names == ALL


def test_data_of_an_interrupted_start_are_made_again(commands: Commands, tmp_path: Path) -> None:
    run_demo()
    (tmp_path / "data/demo/stamp.json").unlink()
    commands.asked.clear()
    run_demo()
    assert commands.names == ALL


def test_killed_training_reports_its_code_and_goes_on_next_time(
    commands: Commands, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.train_code, commands.leaves_weights = 247, False
    with pytest.raises(Failed, match=r"stage train failed.*exit code 247.*resumes from the last checkpoint") as err:
        run_demo()
    assert err.value.exit_code == 247
    commands.train_code, commands.leaves_weights = 0, True
    commands.asked.clear()
    run_demo()
    assert commands.names == ["deepspeed", "evaluate", "predict", "report"]
    assert "going on with the run" in capsys.readouterr().out
    seconds = json.loads((tmp_path / "runs/demo/summary.json").read_text())["seconds"]
    assert seconds["setup"] == 4.0  # of both parts


def test_a_launcher_that_returns_0_without_weights_has_failed(commands: Commands) -> None:
    commands.leaves_weights = False
    with pytest.raises(Failed, match=r"without runs/demo/model\.safetensors") as err:
        run_demo()
    assert err.value.exit_code == 1
    assert commands.names[-1] == "deepspeed"


def test_finished_training_is_not_repeated_when_evaluation_failed(commands: Commands, tmp_path: Path) -> None:
    run_demo()
    (tmp_path / "runs/demo/summary.json").unlink()
    commands.asked.clear()
    run_demo()
    assert commands.names == ["evaluate", "predict", "report"]


def test_own_dataset_has_its_own_names_and_is_only_read(commands: Commands, tmp_path: Path) -> None:
    source = tmp_path / "elsewhere" / "Task04_Hippocampus"
    source.mkdir(parents=True)
    (source / "dataset.json").write_text("{}")
    run_demo("--data", str(source))
    assert commands.names == ["shard", "deepspeed", "evaluate", "predict", "report"]
    assert "--out data/task04_hippocampus/shards" in " ".join(commands.asked[0])
    assert "--config tools/demo_dataset.yaml" in " ".join(commands.asked[1])
    assert (tmp_path / "runs/task04_hippocampus/summary.json").is_file()
    assert [path.name for path in source.iterdir()] == ["dataset.json"]
    commands.asked.clear()
    (source / "dataset.json").write_text('{"name": "changed"}')
    run_demo("--data", str(source))
    assert commands.names[0] == "shard"


def test_data_that_is_no_folder_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(Failed) as err:
        demo.plan_of(demo.parse(["--data", str(tmp_path / "absent")]))
    assert err.value.exit_code == 2


def test_commands_find_the_environments_programs_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin")
    env = demo.machine.environment({"DS_ACCELERATOR": "cpu"})
    assert env["PATH"] == f"{demo.sys.prefix}/bin:/usr/bin"
    assert env["DS_ACCELERATOR"] == "cpu"


def test_only_the_shared_buffers_of_this_port_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uid = demo.machine.os.getuid()
    for port in (29501, 29502):
        (tmp_path / f"deepspeed_allreduce_buffer_{uid}_127.0.0.1_{port}_0").write_text("")
    monkeypatch.setattr(demo.machine, "SHARED_MEMORY", tmp_path)
    demo.machine.remove_shared_buffers(29501)
    assert [path.name for path in tmp_path.iterdir()] == [f"deepspeed_allreduce_buffer_{uid}_127.0.0.1_29502_0"]
