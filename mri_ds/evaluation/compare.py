"""Two runs on the same subjects: which differences are more than chance, and how large they are.

Axes: N subjects that both have predicted.
In: two evaluations (the dictionaries of `evaluate` or `cross_validate`, or where they lie).  Out: one row per figure:

    {"task", "class", "figure", "a", "b": means, "difference": positive where B is better, "interval": of it, 95 %,
     "effect", "effect_interval", "effect_kind", "test", "p", "p_holm", "better": "A", "B" or "", "p_permutation", "num_subjects",
     "num_patients"}

dice, hd95_mm and absolute_error: Wilcoxon's signed ranks, and beside it a permutation test of the mean; accuracy: McNemar; auc
(one class against the rest): DeLong. One Holm correction over all rows; "better" is what remains below alpha.
A mask that is empty in truth and prediction has no Dice: where the other run saw something, it counts as the perfect one it is
(1, and 0 mm), so that the other's false alarm stays in; where both saw nothing, the subject is left out of that row and counted.

Several scans of one patient are no independent subjects. Means and their differences are over scans; intervals draw patients,
each with all scans; Wilcoxon ranks the patients' mean differences; permutations, and McNemar where scans repeat, flip a whole
patient's sign; DeLong's variance is Obuchowski's for clusters. Where each patient has one scan, nothing changes.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mri_ds.errors import InputError
from mri_ds.metrics import paired
from mri_ds.metrics.delong import delong

Figures = dict[str, Any]
VOXEL_FIGURES = {"dice": (1, 1.0), "hd95_mm": (-1, 0.0)}  # figure -> (sign of better, value of a rightly empty mask)
PLACES = ("evaluation.json", "evaluation/evaluation.json")
MIN_SUBJECTS = 2
SAME_TRUTH = 1e-6


def compare_runs(run_a: str | Path, run_b: str | Path, *, alpha: float = 0.05, seed: int = 0) -> Figures:
    """`compare` of two folders (or JSON files) that evaluations were written into."""
    return {
        "run_a": str(run_a),
        "run_b": str(run_b),
        **compare(read_evaluation(run_a), read_evaluation(run_b), alpha=alpha, seed=seed),
    }


def compare(
    a: Figures, b: Figures, *, alpha: float = 0.05, seed: int = 0, num_resamples: int = 2000, num_permutations: int = 9999
) -> Figures:
    """Raises InputError for fewer than two common subjects, no common task, or truths that differ."""
    pairs, notes = _pairs(a, b)
    patients = _patients(a, b, [x["subject_id"] for x, _ in pairs])
    rows: list[Figures] = []
    common = [name for name in a["tasks"] if name in b["tasks"] and a["tasks"][name]["kind"] == b["tasks"][name]["kind"]]
    if not common:
        raise InputError("the two runs have no task in common", fix="compare runs that learned the same")
    for name in common:
        both = [(x[name], y[name]) for x, y in pairs if name in x and name in y]
        whose = [patient for (x, y), patient in zip(pairs, patients) if name in x and name in y]
        if len(both) < MIN_SUBJECTS:
            notes.append(f"{name}: {len(both)} subjects have a label: left out")
            continue
        _check_truths(name, both)
        kind = a["tasks"][name]["kind"]
        made = {"segmentation": _segmentation, "classification": _classification, "regression": _regression}[kind](
            both, notes, name, whose
        )
        for row, differences, of in made:
            if differences is not None:
                row |= _of_differences(differences, of, seed, num_resamples, num_permutations)
            row |= {"num_patients": len(set(of))}
            rows.append({"task": name, **row})
    for row, p in zip(rows, paired.holm([row["p"] for row in rows])):
        row["p_holm"] = p
        row["better"] = ("B" if row["difference"] > 0 else "A") if p <= alpha else ""
    counts = {"num_subjects": len(pairs), "num_patients": len(set(patients))}
    return {"alpha": alpha, **counts, "comparisons": rows, "notes": notes}


def read_evaluation(where: str | Path) -> Figures:
    """The evaluation in a JSON file, or in a run's, a fold's or a cross-validation's folder."""
    path = Path(where)
    places = [path / name for name in PLACES] + sorted(path.glob("evaluation/*.json")) if path.is_dir() else [path]
    for place in places:
        if place.is_file():
            try:
                told = json.loads(place.read_bytes())
            except ValueError:
                raise InputError("is not JSON", where=place, fix="write it with `mri-ds evaluate --json`") from None
            if isinstance(told, dict) and isinstance(told.get("subjects"), list) and isinstance(told.get("tasks"), dict):
                return told
    fix = "evaluate the run first: mri-ds evaluate --checkpoint RUN --data SHARDS --json > RUN/evaluation.json"
    raise InputError("holds no evaluation with subjects", where=path, fix=fix)


# ---- subjects that belong together --------------------------------------------------------------------------------------


def _pairs(a: Figures, b: Figures) -> tuple[list[tuple[Figures, Figures]], list[str]]:
    of_b = {subject["subject_id"]: subject for subject in b["subjects"]}
    pairs = [(subject, of_b[subject["subject_id"]]) for subject in a["subjects"] if subject["subject_id"] in of_b]
    if len(pairs) < MIN_SUBJECTS:
        raise InputError(f"the two runs have {len(pairs)} subjects in common", fix="evaluate both on the same subjects")
    alone = len(a["subjects"]) + len(of_b) - 2 * len(pairs)
    return pairs, [f"{alone} subjects were predicted by one run only: left out"] if alone else []


def _patients(a: Figures, b: Figures, names: Sequence[str]) -> list[str]:
    """Whose scan each subject is; of evaluations that do not say, each its own."""
    known = [{name: one.get("patients", {}).get(name, name) for name in names} for one in (a, b)]
    own = known[0] if "patients" in a else known[1]
    if "patients" in a and "patients" in b and known[0] != known[1]:
        raise InputError("the two runs say differently which scans are of one patient", fix="evaluate both on the same shards")
    return [own[name] for name in names]


def _check_truths(name: str, both: list[tuple[Figures, Figures]]) -> None:
    for x, y in both:
        truths = [_numbers(figures["truth_ml"] if "truth_ml" in figures else figures["truth"]) for figures in (x, y)]
        if truths[0].keys() != truths[1].keys() or not all(_same(truths[0][key], truths[1][key]) for key in truths[0]):
            raise InputError(f"task {name}: a subject's truth differs between the two", fix="evaluate both on the same shards")


def _numbers(truth: Any) -> Mapping[str, Any]:
    return truth if isinstance(truth, dict) else {"": truth}


def _same(x: Any, y: Any) -> bool:
    if isinstance(x, str) or isinstance(y, str) or x is None or y is None:
        return bool(x == y)
    return abs(x - y) <= SAME_TRUTH * max(1.0, abs(x), abs(y))


# ---- rows ----------------------------------------------------------------------------------------------------------------

Row = tuple[Figures, np.ndarray | None, list[str]]  # without differences, its test is in it already; whose each subject is


def _segmentation(both: list[tuple[Figures, Figures]], notes: list[str], name: str, patients: list[str]) -> Iterator[Row]:
    for figure, (sign, rightly_empty) in VOXEL_FIGURES.items():
        for label in both[0][0].get(figure, {}):
            values = [(x[figure][label], y[figure][label]) for x, y in both]
            is_told = [x is not None or y is not None for x, y in values]
            told = [pair for pair, there in zip(values, is_told) if there]
            whose = [patient for patient, there in zip(patients, is_told) if there]
            if len(told) < len(values) and figure == "dice":
                notes.append(f"{name} {label}: {len(values) - len(told)} subjects without it, and rightly so in both: left out")
            if len(told) < MIN_SUBJECTS:
                continue
            table = np.array([[rightly_empty if v is None else v for v in pair] for pair in told], dtype=np.float64)
            row = {"class": label, "figure": figure, "a": float(table[:, 0].mean()), "b": float(table[:, 1].mean())}
            yield row, sign * (table[:, 1] - table[:, 0]), whose


def _regression(both: list[tuple[Figures, Figures]], notes: list[str], name: str, patients: list[str]) -> Iterator[Row]:
    errors = np.array([[abs(v["prediction"] - v["truth"]) for v in pair] for pair in both])
    row = {"class": "", "figure": "absolute_error", "a": float(errors[:, 0].mean()), "b": float(errors[:, 1].mean())}
    yield row, errors[:, 0] - errors[:, 1], patients


def _classification(both: list[tuple[Figures, Figures]], notes: list[str], name: str, patients: list[str]) -> Iterator[Row]:
    right = np.array([[v["prediction"] == v["truth"] for v in pair] for pair in both])
    effect, low, high = paired.mcnemar_effect(right[:, 0], right[:, 1], patients)
    difference = right[:, 1].astype(float) - right[:, 0]
    yield (
        {
            "class": "",
            "figure": "accuracy",
            "a": float(right[:, 0].mean()),
            "b": float(right[:, 1].mean()),
            "difference": float(difference.mean()),
            "interval": paired.mean_interval(difference, patients),
            "effect": effect,
            "effect_interval": (low, high),
            "effect_kind": "Cohen's g",
            "test": "McNemar" if len(set(patients)) == len(patients) else "McNemar by patient",
            "p": paired.mcnemar_p(right[:, 0], right[:, 1], patients),
            "num_subjects": len(both),
        },
        None,
        patients,
    )
    classes = list(both[0][0]["probabilities"])
    for label in classes[1:] if len(classes) == 2 else classes:  # of two classes one area says all
        truth = np.array([x["truth"] == label for x, _ in both])
        num_patients = [len({patient for patient, is_it in zip(patients, kind) if is_it}) for kind in (truth, ~truth)]
        if min(num_patients) < 2:
            notes.append(f"{name} {label}: {truth.sum()} of {len(truth)} subjects: no ROC curve to compare")
            continue
        scores = np.array([[v["probabilities"][label] for v in pair] for pair in both])
        found = delong(truth, scores[:, 0], scores[:, 1], patients)
        yield (
            {
                "class": label,
                "figure": "auc",
                "a": found.a,
                "b": found.b,
                "difference": found.difference,
                "interval": (found.low, found.high),
                "effect": found.difference,
                "effect_interval": (found.low, found.high),
                "effect_kind": "difference of areas",
                "test": "DeLong",
                "p": found.p,
                "num_subjects": len(both),
            },
            None,
            patients,
        )


def _of_differences(
    differences: np.ndarray, patients: list[str], seed: int, num_resamples: int, num_permutations: int
) -> Figures:
    how = {"num_resamples": num_resamples, "seed": seed}
    sums, num_scans = paired.of_patients(differences, patients)
    means = sums / num_scans
    return {
        "difference": float(differences.mean()),
        "interval": paired.mean_interval(differences, patients, **how),
        "effect": paired.rank_biserial(means),
        "effect_interval": paired.rank_biserial_interval(means, **how),
        "effect_kind": "rank-biserial correlation",
        "test": "Wilcoxon",
        "p": paired.wilcoxon_p(means),
        "p_permutation": paired.sign_flip_p(sums, num_permutations=num_permutations, seed=seed),
        "num_subjects": len(differences),
    }
