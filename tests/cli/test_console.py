"""Console: valid JSON whatever the numbers, and a progress that a log file can bear."""

import json
from pathlib import Path

import pytest

from mri_ds.cli import console
from mri_ds.errors import InputError


def test_print_json_has_null_where_json_has_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_json({"dice": {"lesion": float("nan")}, "hd95_mm": [1.5, float("inf")], "n": 3, "name": "x"})
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert json.loads(out) == {"dice": {"lesion": None}, "hd95_mm": [1.5, None], "n": 3, "name": "x"}


def test_progress_in_a_log_is_a_line_now_and_then_and_one_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter([0.0, 1.0, 6.0, 7.0, 8.0])  # the start, then one reading per report; lines are 5 s apart
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    with console.progress("shard", unit="volumes") as report:
        for done in (1, 2, 3, 4):
            report(done, 4)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == ["shard: 2/4, 0.2 volumes/s, 10 s left", "shard: 4/4, 0.429 volumes/s"]


def test_output_folder_that_cannot_be_made_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/out: cannot make this folder: Not a directory"):
        console.output_folder(tmp_path / "file" / "out")
    assert console.output_folder(tmp_path / "a" / "b").is_dir()
