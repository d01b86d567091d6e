"""`mri-ds cross-validate`, `compare`, `calibrate` and `bench accuracy` at the command line: tables, JSON, one-line refusals."""

import json
from pathlib import Path

import pytest
from commands import call, refusal


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Two evaluated runs of eight subjects; B is 0.1 better on every one."""
    paths = []
    for name, gain in (("a", 0.0), ("b", 0.1)):
        subjects = [
            {"subject_id": f"s{i}", "age": {"truth": 50.0, "prediction": 50 + (1 - gain) * (i + 1)}}
            | {"ball": {"dice": {"ball": 0.5 + gain + i / 100}, "hd95_mm": {"ball": 2.0}, "truth_ml": {"ball": 1.0}}}
            for i in range(8)
        ]
        tasks = {"ball": {"kind": "segmentation"}, "age": {"kind": "regression"}}
        paths.append(tmp_path / name)
        paths[-1].mkdir()
        (paths[-1] / "evaluation.json").write_text(json.dumps({"tasks": tasks, "subjects": subjects}))
    return paths[0], paths[1]


def test_compare(runs: tuple[Path, Path]) -> None:
    shown = call("compare", *runs)
    assert shown.exit_code == 0 and "8 subjects" in shown.stdout
    line = next(line for line in shown.stdout.splitlines() if "ball dice" in line)
    assert line.split()[3:5] == ["0.535", "0.635"] and "+0.100" in line and line.rstrip().endswith("B")
    told = json.loads(call("compare", *runs, "--json").stdout)
    assert [(row["figure"], row["better"]) for row in told["comparisons"]] == [
        ("dice", "B"), ("hd95_mm", ""), ("absolute_error", "B")
    ]  # fmt: skip
    assert told["comparisons"][0]["p"] == pytest.approx(2 / 2**8)  # all eight signs alike
    assert "is no chance" in refusal("compare", *runs, "--alpha", "0")
    assert "holds no evaluation" in refusal("compare", runs[0], runs[0].parent / "absent")


def test_cross_validate_hands_on_what_it_does_not_know(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def record(data: Path, out: Path, options: list[str], **how: object) -> dict:
        asked.append((data, out, list(options), how["num_folds"], how["seed"], how["only"]))
        return {"tasks": {}, "subjects": [], "num_subjects": 0, "folds": []}

    monkeypatch.setattr("mri_ds.evaluation.cross_validate.cross_validate", record)
    done = call(
        "cross-validate", "--folds", "3", "--scale", "tiny", "--data", shards, "--set", "a.b=1", "--set=c.d=2", "--out", tmp_path,
        "--ranks", "2", "--only", "1", "--skip-corrupt", "--json",
    )  # fmt: skip
    assert done.exit_code == 0 and json.loads(done.stdout)["folds"] == []
    options = ["--scale", "tiny", "--set", "a.b=1", "--set=c.d=2", "--ranks", "2", "--skip-corrupt"]
    assert asked == [(shards, tmp_path, options, 3, 0, [1])]


def test_cross_validate_refuses(shards: Path, tmp_path: Path) -> None:
    assert "--run is not for" in refusal("cross-validate", "--data", shards, "--out", tmp_path / "cv", "--run", "x")
    assert str(tmp_path) in refusal("cross-validate", "--data", tmp_path, "--out", tmp_path / "cv")


def test_calibrate_and_bench_accuracy_refuse(shards: Path, tmp_path: Path) -> None:
    assert str(tmp_path / "absent") in refusal("calibrate", "--checkpoint", tmp_path / "absent", "--data", shards)
    assert "no finished fold" in refusal("bench", "accuracy", "--cross-validation", tmp_path, "--out", tmp_path / "out")
