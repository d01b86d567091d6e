"""The demo's run folder: what goes on, what starts afresh, and what is never cleared."""

from pathlib import Path

import pytest
from run_folder import Clock, Failed, prepare, read_json, write_json

MINE = {"data": {"seed": 0}}
OTHER = {"data": {"seed": 1}}


def started(run: Path, *, with_checkpoint: bool = True, complete: bool = False) -> Path:
    prepare(run, MINE)
    Clock(run, MINE).add("setup", 1.0)
    if with_checkpoint:
        (run / "checkpoints").mkdir()
    if complete:
        write_json(run / "summary.json", {})
    return run


def test_a_new_folder_is_made(tmp_path: Path) -> None:
    assert prepare(tmp_path / "runs" / "demo", MINE).startswith("new run")
    assert (tmp_path / "runs" / "demo").is_dir()


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    run = started(tmp_path / "demo")
    assert prepare(run, MINE).startswith("going on")
    assert (run / "checkpoints").is_dir()


def test_checkpoints_of_a_training_started_by_hand_go_on(tmp_path: Path) -> None:
    (tmp_path / "demo" / "checkpoints").mkdir(parents=True)
    assert prepare(tmp_path / "demo", MINE).startswith("going on")
    assert (tmp_path / "demo" / "checkpoints").is_dir()


def test_a_complete_run_is_made_anew(tmp_path: Path) -> None:
    run = started(tmp_path / "demo", complete=True)
    assert "is complete: starting afresh" in prepare(run, MINE)
    assert list(run.iterdir()) == []


def test_a_run_with_other_settings_is_made_anew(tmp_path: Path) -> None:
    run = started(tmp_path / "demo")
    assert "other data or settings: starting afresh" in prepare(run, OTHER)
    assert list(run.iterdir()) == []


@pytest.mark.parametrize("name", ["thesis.txt", "summary.json"])
def test_a_folder_of_somebody_else_is_never_cleared(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(Failed, match="not a run folder") as err:
        prepare(tmp_path, MINE)
    assert err.value.exit_code == 2
    assert (tmp_path / name).read_text() == "precious"


def test_seconds_of_earlier_parts_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    first = Clock(tmp_path, MINE)
    first.add("setup", 3.0)
    with pytest.raises(KeyboardInterrupt), first.stage("train"):
        now[0] += 40.0
        raise KeyboardInterrupt
    second = Clock(tmp_path, MINE)
    with second.stage("train"):
        now[0] += 2.0
    assert second.seconds == {"setup": 3.0, "data": 0.0, "train": 42.0, "evaluate": 0.0}


def test_seconds_survive_a_kill_up_to_the_last_tick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    killed = Clock(tmp_path, MINE)
    stage = killed.stage("train")
    stage.__enter__()
    now[0] = 9.0
    killed.tick()
    now[0] = 9.5  # and no __exit__: SIGKILL
    assert Clock(tmp_path, MINE).seconds["train"] == 9.0


@pytest.mark.parametrize("text", ["", '{"seconds": {"tr', "[1]"], ids=["empty", "torn", "no object"])
def test_a_file_cut_short_reads_as_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    assert read_json(tmp_path / "x.json") == {}
    assert read_json(tmp_path / "absent.json") == {}
