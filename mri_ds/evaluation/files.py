"""What `mri-ds evaluate` leaves behind: its dictionary as JSON, and tables for a spreadsheet.

In: evaluate's dictionary.  Out: files in one folder, each moved into place whole.

    evaluation.json  all of it
    subjects.csv     a row per subject, task and class: every figure, truth and prediction; whose scan it is, and its strata
    tasks.csv        a row per task and figure: value, interval, the constant predictor's, number of subjects
    classes.csv      the same per class, with how many were missed, false alarms and empty
    strata.csv       tasks.csv for each group of subjects
    agreement.csv    a row per pair of readers, task, class and figure; only where there are several

Cells of figures that are not defined are empty.
"""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mri_ds.evaluation.figures import BY_CLASS, CLASSIFICATION, ONE_AGAINST_REST, REGRESSION
from mri_ds.evaluation.strata import STRATA

Row = dict[str, Any]
FIGURE = ("figure", "value", "low", "high", "constant", "num_subjects")
VALUES = ("truth", "prediction")
COUNTS = ("num_missed", "num_false_alarm", "num_empty")
HEADINGS = {
    "subjects": ("subject_id", "patient", *STRATA, "task", "class", *VALUES, "truth_ml", "prediction_ml", *BY_CLASS),
    "tasks": ("task", "kind", *FIGURE, "num_patients"),
    "classes": ("task", "kind", "class", *FIGURE, *COUNTS),
    "strata": ("stratum", "level", "task", "kind", *FIGURE, "num_patients"),
    "agreement": ("task", "a", "b", "class", "figure", "value", "low", "high", "num_subjects"),
}


def write_files(result: dict[str, Any], folder: Path) -> dict[str, str]:
    """{what: path} of the files written. `folder` exists."""
    written = {"evaluation": folder / "evaluation.json"}
    partial = folder / f".{os.getpid()}.evaluation.json"
    partial.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    os.replace(partial, written["evaluation"])
    rows = {"subjects": _subjects(result), "tasks": _tasks(result["tasks"]), "classes": _classes(result["tasks"])}
    rows |= {"strata": _strata(result["strata"]), "agreement": _agreement(result["agreement"])}
    for name, content in rows.items():
        found = list(content)
        path = folder / f"{name}.csv"
        path.unlink(missing_ok=True)  # of an earlier call, that found some
        if found:
            written[name] = _write(path, HEADINGS[name], found)
    return {name: str(path) for name, path in written.items()}


def _subjects(result: dict[str, Any]) -> Iterator[Row]:
    for subject in result["subjects"]:
        name = subject["subject_id"]
        who = {"subject_id": name, "patient": result["patients"][name], **result["strata_of_subjects"].get(name, {})}
        for task, summary in result["tasks"].items():
            if task not in subject:
                continue
            own = subject[task]
            if summary["kind"] != "segmentation":
                yield {**who, "task": task, "truth": own["truth"], "prediction": own["prediction"]}
                continue
            for label in own["dice"]:
                figures = {key: own[key][label] for key in (*BY_CLASS, "truth_ml", "prediction_ml")}
                yield {**who, "task": task, "class": label, **figures}


def _tasks(tasks: dict[str, Any]) -> Iterator[Row]:
    for name, task in tasks.items():
        common = {"task": name, "kind": task["kind"], "num_patients": task["num_patients"]}
        if task["kind"] == "segmentation":  # means over the classes
            for key in BY_CLASS:
                found = (task["mean"][key], task["interval"]["mean"][key], task["constant"]["mean"][key])
                yield {**common, **_figure(key, *found, task["num_subjects"])}
            continue
        for key in CLASSIFICATION if task["kind"] == "classification" else REGRESSION:
            yield {**common, **_figure(key, task[key], task["interval"][key], task["constant"][key], task["num_scored"])}


def _classes(tasks: dict[str, Any]) -> Iterator[Row]:
    for name, task in tasks.items():
        common = {"task": name, "kind": task["kind"]}
        if task["kind"] == "segmentation":
            for label in task["dice"]:
                counts = {key: task[key][label] for key in COUNTS}
                for key in BY_CLASS:
                    found = (task[key][label], task["interval"][key][label], task["constant"][key][label])
                    yield {**common, "class": label, **_figure(key, *found, task["num_defined"][key][label]), **counts}
        elif task["kind"] == "classification":
            for label in task["classes"]:
                for key in ONE_AGAINST_REST:
                    interval, constant = task["interval"]["by_class"][label][key], task["constant_by_class"][label][key]
                    found = (task["by_class"][label][key], interval, constant)
                    yield {**common, "class": label, **_figure(key, *found, task["num"][label])}


def _strata(strata: dict[str, Any]) -> Iterator[Row]:
    for stratum, levels in strata.items():
        for level, group in levels.items():
            for row in _tasks(group["tasks"]):
                yield {"stratum": stratum, "level": level, **row}


def _agreement(agreement: dict[str, Any]) -> Iterator[Row]:
    for task, pairs in agreement.items():
        for pair in pairs:
            common = {"task": task, "a": pair["a"], "b": pair["b"], "num_subjects": pair["num_subjects"]}
            for key, value in pair["figures"].items():
                by_class = value if isinstance(value, dict) else {"": value}
                for label, one in by_class.items():
                    ends = pair["interval"][key][label] if label else pair["interval"][key]
                    yield {**common, "class": label, "figure": key, "value": one, "low": ends[0], "high": ends[1]}


def _figure(name: str, value: Any, interval: list[Any], constant: Any, num_subjects: int) -> Row:
    found = {"figure": name, "value": value, "low": interval[0], "high": interval[1]}
    return found | {"constant": constant, "num_subjects": num_subjects}


def _write(path: Path, headings: tuple[str, ...], rows: list[Row]) -> Path:
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, headings, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(partial, path)
    return path
