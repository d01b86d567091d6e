"""`mri-ds report` on run folders of every kind: what stands in JSON, page and card, and what is refused."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from commands import call, refusal
from report_runs import HOSTILE, make_run

from mri_ds.inference.run import load_run
from mri_ds.report import viewer


@pytest.fixture(scope="module")
def run(hostile_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "first", hostile_shards)


def report(run: Path, *options: str | Path) -> tuple[dict, str]:
    """The JSON, and the text of the page."""
    result = call("report", run, *options, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    return told, Path(told["report"]).read_text()


def table(told: dict, id: str) -> dict:
    (found,) = (one for one in told["tables"] if one["id"] == id)
    return found


def test_numbers_are_the_evaluations(run: Path) -> None:
    told, page = report(run, "--no-images")
    figures = json.loads((run / "evaluation" / "evaluation.json").read_text())
    ball, radius = figures["tasks"]["ball"], figures["tasks"]["radius"]
    row = table(told, "task-ball")["rows"][0]
    assert row[:4] == [HOSTILE, ball["dice"][HOSTILE], ball["interval"]["dice"][HOSTILE], ball["constant"]["dice"][HOSTILE]]
    assert table(told, "task-radius")["rows"][0][1] == radius["mae"]
    assert table(told, "empty")["rows"] == [["ball", HOSTILE, ball["num_scored"][HOSTILE], ball["num_missed"][HOSTILE],
                                              ball["num_false_alarm"][HOSTILE], ball["num_empty"][HOSTILE]]]  # fmt: skip
    pairs = [subject["ball"] for subject in figures["subjects"]]
    errors = np.array([one["prediction_ml"][HOSTILE] - one["truth_ml"][HOSTILE] for one in pairs])
    shown = told["charts"][f"bland-altman-ball-{HOSTILE}"]
    assert shown["bias"] == pytest.approx(errors.mean())
    assert shown["upper"] == pytest.approx(errors.mean() + 1.96 * errors.std(ddof=1), rel=1e-4)
    assert told["charts"]["curve-loss"]["loss"] == [[10, 20, 40], [3.0, 1.5, 0.75]]
    assert told["charts"]["expert-load"]["layer0"] == [1.5] * 3
    assert HOSTILE not in page and "<img src=x" not in page
    assert "&lt;script&gt;document.title" in page
    assert told["cases"][0]["rank"] == "best" and "base64" not in page.split("<style>")[0] + page.split("</style>")[1]


def test_cost_by_hand(run: Path) -> None:
    """10 steps of 1 s, 10 of 2 s, 20 of 4 s; two ranks of 50 W."""
    cost = report(run, "--no-images", "--watts", "50")[0]["cost"]
    assert cost["training_s"] == 110
    assert cost["energy_kwh"] == pytest.approx(110 * 2 * 50 / 3.6e6)
    assert cost["flops"] == pytest.approx(110e9)
    weights = dict(load_run(run).net.named_parameters())
    experts = sum(w.numel() for name, w in weights.items() if ".experts." in name)
    assert cost["parameters_total"] == sum(w.numel() for w in weights.values())
    assert cost["parameters_experts"] == experts > 0
    assert cost["parameters_active"] == cost["parameters_total"]  # 2 experts, of which a token visits 2


def test_without_the_viewers_package_the_page_says_how_to_get_it_and_shows_maps(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mri_ds.data.nifti import write_label

    experts = np.arange(24 * 20 * 16).reshape(24, 20, 16) % 3
    write_label(tmp_path / "sub-01_experts_layer0.nii.gz", experts.astype(np.int16), np.diag([-1.0, 1, 1, 1]))
    (tmp_path / "broken.nii.gz").write_bytes(b"no gzip")
    monkeypatch.setattr(viewer, "PACKAGE", "not_installed_here")
    told, page = report(run, "--maps", tmp_path)
    assert told["maps"] == ["sub-01_experts_layer0"] and "sub-01_experts_layer0 in three planes" in page
    assert [note for note in told["notes"] if note.startswith("Map left out") and "broken.nii.gz" in note]
    assert "pip install --no-deps &#x27;ipyniivue" in page and "ipyniivue" in told["viewer"]
    assert page.count("data:image/webp;base64,") == 3  # two held-out subjects and the map


def test_a_run_that_was_not_evaluated_says_how_to(hostile_shards: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "fresh", hostile_shards, evaluated=False)
    told, page = report(run)
    assert not told["evaluated"] and told["cases"] == []
    assert f"mri-ds evaluate --checkpoint {run} --data {hostile_shards}" in page
    assert "curve-loss" in told["charts"]


@pytest.mark.parametrize(("only", "score"), [("size", "probability of the true class"), ("radius", "minus absolute error")])
def test_runs_without_a_segmentation(hostile_shards: Path, tmp_path: Path, only: str, score: str) -> None:
    told, page = report(make_run(tmp_path / only, hostile_shards, only=(only,)))
    assert {case["score_name"] for case in told["cases"]} == {score}
    assert page.count("data:image/webp;base64,") == len(told["cases"])
    assert any(name.startswith("reliability" if only == "size" else "bland-altman") for name in told["charts"])
    assert told["notes"] == []


def test_a_cross_validation_has_its_pooled_figures(hostile_shards: Path, tmp_path: Path) -> None:
    from mri_ds.data.folds import deal, summarize_all, write_fold
    from mri_ds.data.manifest import read_manifest
    from mri_ds.evaluation.cross_validate import pool

    summaries = summarize_all(hostile_shards)
    fold_of = deal(hostile_shards, num_folds=2, seed=0, summaries=summaries)
    for fold in range(2):
        view = tmp_path / "shards" / f"fold-{fold}"
        write_fold(hostile_shards, view, fold_of, fold, summaries)
        own = make_run(tmp_path / f"fold-{fold}", view, seed=fold)
        (own / "evaluation" / "evaluation.json").rename(own / "evaluation.json")
        (own / "train_seconds.json").write_text('{"train_s": 60.0}')
    pooled = pool(tmp_path, read_manifest(hostile_shards), summaries)
    (tmp_path / "evaluation.json").write_text(json.dumps(pooled))
    told, page = report(tmp_path)
    assert table(told, "task-ball")["rows"][-1][1] == pooled["tasks"]["ball"]["dice_mean"]
    assert [row[0] for row in table(told, "folds")["rows"]] == ["fold 0"] * 3 + ["fold 1"] * 3
    assert told["cost"]["wall_s"] == 120 and told["cost"]["training_s"] == 220
    assert set(told["charts"]["curve-loss"]) == {"fold-0 loss", "fold-1 loss"}
    assert [case["rank"] for case in told["cases"]] == ["best", "median", "worst"]
    assert told["notes"] == [], "each case is predicted by the network that did not see it, as its figures were"
    assert page.count("data:image/webp;base64,") == 3


def test_the_card_says_what_is_known_and_who_fills_the_rest(run: Path) -> None:
    told, _ = report(run, "--no-images")
    card = json.loads(Path(told["card_json"]).read_text())
    items = {item["id"]: item for section in card["sections"] for item in section["items"]}
    assert told["open_items"] == sum(item["answer"] is None for item in items.values()) > 20
    text = Path(told["card"]).read_text()
    assert "no evidence of conformity" in text and "`intended_use`): to be filled by the clinical lead" in text
    for name in ("gmlp_10", "pccp_protocol", "transparency", "mdr_class", "ai_oversight"):
        assert name in items
    assert "8 in train, 2 in test" in items["subjects"]["answer"]
    assert HOSTILE not in text, "Markdown lets markup through"
    (run / "card_answers.yaml").write_text("intended_use: To measure balls.\n")
    again, page = report(run, "--no-images")
    assert "To measure balls." in Path(again["card"]).read_text() and "To measure balls." in page
    assert again["open_items"] == told["open_items"] - 1
    (run / "card_answers.yaml").write_text("intended_usage: x\n")
    assert "no item 'intended_usage'" in refusal("report", run)
    (run / "card_answers.yaml").unlink()


def test_shards_that_are_gone_leave_the_rest(run: Path, tmp_path: Path) -> None:
    import shutil

    moved = shutil.copytree(run, tmp_path / "moved")
    (moved / "launch.json").write_text(json.dumps({"data": str(tmp_path / "gone")}))
    told, page = report(moved)
    assert "--data DIR" in told["notes"][0] and "Best: sub-" in re.sub("<[^>]+>", "", page)


def test_refusals(run: Path, tmp_path: Path) -> None:
    assert str(tmp_path / "absent") in refusal("report", tmp_path / "absent")
    assert "config.yaml" in refusal("report", tmp_path)
    assert "--data" in refusal("report", run, "--data", tmp_path / "absent")
    assert "is a folder" in refusal("report", run, "--out", tmp_path)
