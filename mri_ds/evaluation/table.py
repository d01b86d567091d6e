"""The figures of `evaluate` as tables for a terminal: one per task, the constant predictor's beside each figure.

In: evaluate's dictionary.  Out: rich tables; "-" where a figure is not defined. More figures are in the files, see files.py.
"""

from typing import Any

from rich.console import Console
from rich.table import Table

CLASSIFICATION = {
    "balanced_accuracy": "balanced accuracy",
    "auc": "AUC, one against the rest",
    "average_precision": "average precision",
    "mcc": "Matthews correlation",
    "ece": "calibration error",
    "brier": "Brier score",
}
REGRESSION = {
    "mae": "mean absolute error",
    "rmse": "root mean square error",
    "r": "Pearson r",
    "r2": "R2",
    "bias": "bias",
    "lower": "lower limit of agreement",
    "upper": "upper limit of agreement",
}
COUNTS = ("num_scored", "num_missed", "num_false_alarm", "num_empty")
HEADLINE = {
    "segmentation": ("dice_mean", "Dice"),
    "classification": ("balanced_accuracy", "balanced accuracy"),
    "regression": ("mae", "mean absolute error"),
}


def print_result(result: dict[str, Any], console: Console | None = None) -> None:
    """Prints every task's table; by default to stdout."""
    console = console or Console()
    for name, task in result["tasks"].items():
        console.print(task_table(name, task))
    for name, pairs in result.get("agreement", {}).items():
        console.print(_agreement(name, pairs))
    if result.get("strata"):
        console.print(_strata(result["strata"]))
    told = "95 %: where the figure would lie with other subjects. constant: a predictor that knows the training data"
    console.print(f"{told_number(result)}. {told} and never looks.")


def told_number(figures: dict[str, Any], key: str = "num_subjects") -> str:
    """As "12 subjects"; "12 scans of 5 patients" where some have several."""
    num = figures[key]
    num_patients = figures.get("num_patients", num)  # an evaluation.json of an earlier version does not say
    return f"{num} subjects" if num_patients == num else f"{num} scans of {num_patients} patients"


def task_table(name: str, task: dict[str, Any]) -> Table:
    """One task of evaluate's result. `task` is its entry under "tasks"."""
    return {"segmentation": _segmentation, "classification": _classification, "regression": _regression}[task["kind"]](name, task)


def _segmentation(name: str, task: dict[str, Any]) -> Table:
    several = task.get("num_patients", task.get("num_subjects")) != task.get("num_subjects")
    table = Table(title=f"{name} (segmentation{', ' + told_number(task) if several else ''})", title_justify="left")
    table.add_column("class")
    for heading in ("Dice", "95 %", "constant", "HD95 mm", "95 %", "subjects", "missed", "false alarms", "empty"):
        table.add_column(heading, justify="right")
    for label, value in task["dice"].items():
        counts = [str(task[key][label]) for key in COUNTS if key in task]
        dice = [_number(value), _interval(task, "dice", label), _number(task["constant"]["dice"][label])]
        surfaces = [_number(task["hd95_mm"][label], 2), _interval(task, "hd95_mm", label, digits=2)]
        table.add_row(label, *dice, *surfaces, *counts)
    table.add_section()
    dice = [_number(task["dice_mean"]), _interval(task, "dice_mean"), _number(task["constant"]["dice_mean"])]
    table.add_row("mean", *dice, style="bold")
    return table


def _classification(name: str, task: dict[str, Any]) -> Table:
    table = _figures_table(f"{name} (classification, {told_number(task, 'num_scored')})")
    for key, label in CLASSIFICATION.items():
        if key in task:
            table.add_row(label, _number(task[key]), _interval(task, key), _number(task["constant"].get(key)))
    table.add_section()
    for truth, row in zip(task["classes"], task["confusion"]):
        told = ", ".join(f"{count} {label}" for label, count in zip(task["classes"], row) if count)
        table.add_row(f"true {truth}, called", told or "-", "", "")
    return table


def _regression(name: str, task: dict[str, Any]) -> Table:
    unit = f", {task['unit']}" if task["unit"] else ""
    table = _figures_table(f"{name} (regression{unit}, {told_number(task, 'num_scored')})")
    for key, label in REGRESSION.items():
        if key in task:
            table.add_row(label, _number(task[key]), _interval(task, key), _number(task["constant"].get(key)))
    return table


def _strata(strata: dict[str, Any]) -> Table:
    """The headline figure of each task in each group."""
    table = Table(title="groups of subjects", title_justify="left")
    for heading, justify in (("group", "left"), ("subjects", "right"), ("task", "left"), ("figure", "left"), ("run", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for heading in ("95 %", "constant"):
        table.add_column(heading, justify="right")
    for stratum, levels in strata.items():
        for level, group in levels.items():
            shown = [f"{stratum} {level}", str(group["num_subjects"])]
            for name, task in group["tasks"].items():
                key, label = HEADLINE[task["kind"]]
                found = (_number(task[key]), _interval(task, key), _number(task["constant"][key]))
                table.add_row(*shown, name, label, *found)
                shown = ["", ""]
        table.add_section()
    return table


def _agreement(name: str, pairs: list[dict[str, Any]]) -> Table:
    table = Table(title=f"{name}: model and readers", title_justify="left")
    for heading in ("between", "and", "subjects", "figure", "agreement", "95 %"):
        table.add_column(heading, justify="right" if heading in ("subjects", "agreement", "95 %") else "left")
    for pair in pairs:
        shown = [pair["a"], pair["b"], str(pair["num_subjects"])]
        for key, value in pair["figures"].items():
            for label, one in value.items() if isinstance(value, dict) else [("", value)]:
                interval = _interval(pair, key, label) if label else _interval(pair, key)
                table.add_row(*shown, f"{key} {label}".strip(), _number(one), interval)
                shown = ["", "", ""]
        table.add_section()
    return table


def _figures_table(title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("figure")
    for heading in ("run", "95 %", "constant"):
        table.add_column(heading, justify="right")
    return table


def _interval(figures: dict[str, Any], *keys: str, digits: int = 3) -> str:
    """Of figures["interval"][key][...]; nothing where an evaluation.json of an earlier version has none."""
    ends: Any = figures.get("interval", {})
    for key in keys:
        ends = ends.get(key, {})
    low, high = ends or (None, None)
    return "" if low is None or high is None else f"{low:.{digits}f} to {high:.{digits}f}"


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
