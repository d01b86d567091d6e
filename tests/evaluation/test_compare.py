"""Comparing runs: nothing is found where there is nothing, something where there is; empty masks, pairing, refusals."""

import copy
import json

import numpy as np
import pytest

from mri_ds.errors import InputError
from mri_ds.evaluation.compare import compare, compare_runs

NUM = 40
KINDS = {"tissue": "segmentation", "lesion": "classification", "age": "regression"}


def cohort(dice: np.random.Generator) -> dict:
    """Forty people: what a task is like for each, whoever predicts it."""
    return {
        "ease": dice.normal(1.5, 0.8, NUM),
        "ml": dice.uniform(1, 3, NUM),
        "ill": dice.uniform(size=NUM) < 0.4,
        "age": dice.uniform(20, 80, NUM),
        "odd": dice.normal(0, 4, NUM),
    }


def predicted(people: dict, dice: np.random.Generator, *, better: float = 0.0) -> dict:
    """One seed of a network: its figures share the people's ease and differ by its own chance."""
    subjects = []
    for i in range(NUM):
        overlap = 1 / (1 + np.exp(-(people["ease"][i] + better + dice.normal(0, 0.3, 2))))
        score = 1 / (1 + np.exp(-(2 * people["ill"][i] - 1) * (1 + better) - dice.normal(0, 1)))
        names = ("csf", "grey")
        subjects.append(
            {
                "subject_id": f"s{i}",
                "tissue": {
                    "dice": dict(zip(names, overlap.tolist())),
                    "hd95_mm": dict(zip(names, (8 * (1 - overlap) + dice.exponential(0.3, 2)).tolist())),
                    "truth_ml": dict.fromkeys(names, people["ml"][i]),
                },
                "lesion": {
                    "truth": "some" if people["ill"][i] else "none",
                    "prediction": "some" if score > 0.5 else "none",
                    "probabilities": {"none": 1 - score, "some": score},
                },
                "age": {
                    "truth": people["age"][i],
                    "prediction": people["age"][i] + people["odd"][i] * (1 - better / 2) + dice.normal(0, 2),
                },
            }
        )
    return {"tasks": {name: {"kind": kind} for name, kind in KINDS.items()}, "subjects": subjects}


def findings(seed: int, *, better: float = 0.0) -> list[str]:
    dice = np.random.default_rng([seed, 77])
    people = cohort(dice)
    a, b = predicted(people, dice), predicted(people, dice, better=better)
    rows = compare(a, b, seed=seed, num_resamples=50, num_permutations=99)["comparisons"]
    assert len(rows) == 7  # two classes twice, accuracy, area, error
    return [row["better"] for row in rows if row["better"]]


def test_a_model_beside_itself_under_another_seed_is_rarely_called_different():
    wrong = sum(bool(findings(seed)) for seed in range(200))
    assert wrong <= 10  # 5 % of 200


def test_a_better_model_is_called_better():
    found = [findings(seed, better=0.8) for seed in range(20)]
    assert sum("B" in one for one in found) >= 18 and not any("A" in one for one in found)


def scanned_again(run: dict, dice: np.random.Generator) -> dict:
    """Each of the forty as four scans of one patient, with the network's own luck on that patient and little on the scan."""
    subjects, patients = [], {}
    for i, subject in enumerate(run["subjects"]):
        for visit in range(4):
            again = copy.deepcopy(subject)
            again["subject_id"] = f"s{i}-{visit}"
            patients[again["subject_id"]] = f"s{i}-0"
            again["tissue"]["dice"] = {name: x + dice.normal(0, 0.01) for name, x in again["tissue"]["dice"].items()}
            subjects.append(again)
    return {**run, "subjects": subjects, "patients": patients}


def test_several_scans_of_each_patient_are_no_more_evidence_than_patients():
    """One null cohort after another: with patients named at most 5 % are called different, taken for subjects most are."""
    wrong, naive = 0, 0
    for seed in range(60):
        dice = np.random.default_rng([seed, 78])
        people = cohort(dice)
        a, b = (scanned_again(one, dice) for one in (predicted(people, dice), predicted(people, dice)))
        given = {"seed": seed, "num_resamples": 20, "num_permutations": 99}
        result = compare(a, b, **given)
        assert (result["num_subjects"], result["num_patients"]) == (4 * NUM, NUM)
        wrong += any(row["better"] for row in result["comparisons"])
        unaware = [{key: value for key, value in one.items() if key != "patients"} for one in (a, b)]
        naive += any(row["better"] for row in compare(*unaware, **given)["comparisons"])
    assert wrong <= 7  # 5 % of 60 are 3; more than 7 in one of 100 such tests
    assert naive >= 20


def test_one_scan_of_each_patient_changes_nothing(runs):
    named = [{**run, "patients": {s["subject_id"]: s["subject_id"].upper() for s in run["subjects"]}} for run in runs]
    assert compare(*named) == compare(*runs)
    named[1]["patients"] = {**named[1]["patients"], "s1": "S0"}
    with pytest.raises(InputError, match="which scans are of one patient"):
        compare(*named)


@pytest.fixture
def runs():
    dice = np.random.default_rng(3)
    people = cohort(dice)
    return predicted(people, dice), predicted(people, dice, better=0.5)


def test_positive_differences_favour_b_in_every_figure(runs):
    rows = {(row["figure"], row["class"]): row for row in compare(*runs)["comparisons"]}
    a, b = ([s["tissue"] for s in run["subjects"]] for run in runs)
    dice = np.array([y["dice"]["grey"] - x["dice"]["grey"] for x, y in zip(a, b)])
    hd95 = np.array([x["hd95_mm"]["csf"] - y["hd95_mm"]["csf"] for x, y in zip(a, b)])
    assert rows["dice", "grey"]["difference"] == pytest.approx(dice.mean()) and dice.mean() > 0
    assert rows["hd95_mm", "csf"]["difference"] == pytest.approx(hd95.mean()) and hd95.mean() > 0
    for row in rows.values():
        assert row["interval"][0] <= row["difference"] <= row["interval"][1]
        assert row["effect_interval"][0] <= row["effect"] <= row["effect_interval"][1]
    swapped = {(row["figure"], row["class"]): row for row in compare(*runs[::-1])["comparisons"]}
    for key, row in rows.items():
        assert swapped[key]["difference"] == pytest.approx(-row["difference"])
        assert (
            swapped[key]["p"] == pytest.approx(row["p"]) and swapped[key]["better"] == {"A": "B", "B": "A", "": ""}[row["better"]]
        )


def test_empty_masks(runs):
    a, b = copy.deepcopy(runs)
    for run, values in ((a, (None, None)), (b, (None, 0.0))):  # s0: both saw rightly nothing; s1: b alone has a false alarm
        for i, value in enumerate(values):
            figures = run["subjects"][i]["tissue"]
            figures["truth_ml"]["grey"] = 0.0
            figures["dice"]["grey"] = value
            figures["hd95_mm"]["grey"] = None if value is None else 30.0
    result = compare(a, b)
    rows = {(row["figure"], row["class"]): row for row in result["comparisons"]}
    assert rows["dice", "grey"]["num_subjects"] == NUM - 1 and rows["dice", "csf"]["num_subjects"] == NUM
    others = [(x["tissue"], y["tissue"]) for x, y in zip(a["subjects"], b["subjects"])][2:]
    expected = np.mean([0.0 - 1.0, *(y["dice"]["grey"] - x["dice"]["grey"] for x, y in others)])
    assert rows["dice", "grey"]["difference"] == pytest.approx(expected)
    expected = np.mean([0.0 - 30.0, *(x["hd95_mm"]["grey"] - y["hd95_mm"]["grey"] for x, y in others)])
    assert rows["hd95_mm", "grey"]["difference"] == pytest.approx(expected)
    assert any("grey: 1 subjects without it" in note for note in result["notes"])


def test_subjects_are_paired_by_name(runs, tmp_path):
    a, b = copy.deepcopy(runs)
    b["subjects"] = b["subjects"][::-1][:-5]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "evaluation.json").write_text(json.dumps(a))
    (tmp_path / "b.json").write_text(json.dumps(b))
    result = compare_runs(tmp_path / "run", tmp_path / "b.json")
    assert result["num_subjects"] == NUM - 5 and "5 subjects were predicted by one run only: left out" in result["notes"]
    errors = [abs(s["age"]["prediction"] - s["age"]["truth"]) for s in a["subjects"][5:]]
    assert next(r for r in result["comparisons"] if r["figure"] == "absolute_error")["a"] == pytest.approx(np.mean(errors))
    json.dumps(result, allow_nan=False)


def test_refusals(runs, tmp_path):
    a, b = copy.deepcopy(runs)
    b["subjects"][3]["age"]["truth"] += 1
    with pytest.raises(InputError, match="task age: a subject's truth differs"):
        compare(a, b)
    with pytest.raises(InputError, match="0 subjects in common"):
        compare(a, {**b, "subjects": []})
    with pytest.raises(InputError, match="no task in common"):
        compare(a, {**b, "tasks": {"tissue": {"kind": "regression"}}})
    with pytest.raises(InputError, match="no evaluation with subjects"):
        compare_runs(tmp_path, tmp_path)
    (tmp_path / "evaluation.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        compare_runs(tmp_path, tmp_path)
