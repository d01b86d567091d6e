"""The figures of `evaluate` as tables for a terminal: one per task, the constant predictor's beside each figure.

In: evaluate's dictionary.  Out: rich tables; "-" where a figure is not defined.
"""

from typing import Any

from rich.console import Console
from rich.table import Table


def print_result(result: dict[str, Any], console: Console | None = None) -> None:
    """Prints every task's table; by default to stdout."""
    console = console or Console()
    for name, task in result["tasks"].items():
        console.print(task_table(name, task))
    console.print(f"{result['num_subjects']} subjects. constant: a predictor that knows the training data and never looks.")


def task_table(name: str, task: dict[str, Any]) -> Table:
    """One task of evaluate's result. `task` is its entry under "tasks"."""
    return {"segmentation": _segmentation, "classification": _classification, "regression": _regression}[task["kind"]](name, task)


def _segmentation(name: str, task: dict[str, Any]) -> Table:
    table = Table(title=f"{name} (segmentation)", title_justify="left")
    table.add_column("class")
    for heading in ("Dice", "constant", "HD95 mm", "subjects", "missed", "false alarms"):
        table.add_column(heading, justify="right")
    for label, value in task["dice"].items():
        counts = [str(task[key][label]) for key in ("num_scored", "num_missed", "num_false_alarm")]
        constant = task["constant"]["dice"][label]
        table.add_row(label, _number(value), _number(constant), _number(task["hd95_mm"][label], 2), *counts)
    table.add_section()
    table.add_row("mean", _number(task["dice_mean"]), _number(task["constant"]["dice_mean"]), "", "", "", "", style="bold")
    return table


def _classification(name: str, task: dict[str, Any]) -> Table:
    table = _figures_table(f"{name} (classification, {task['num_scored']} subjects)")
    for key, label in (("balanced_accuracy", "balanced accuracy"), ("auc", "AUC, one against the rest")):
        table.add_row(label, _number(task[key]), _number(task["constant"][key]))
    table.add_section()
    for truth, row in zip(task["classes"], task["confusion"]):
        told = ", ".join(f"{count} {label}" for label, count in zip(task["classes"], row) if count)
        table.add_row(f"true {truth}, called", told or "-", "")
    return table


def _regression(name: str, task: dict[str, Any]) -> Table:
    unit = f", {task['unit']}" if task["unit"] else ""
    table = _figures_table(f"{name} (regression{unit}, {task['num_scored']} subjects)")
    table.add_row("mean absolute error", _number(task["mae"]), _number(task["mae_constant"]))
    table.add_row("root mean square error", _number(task["rmse"]), _number(task["constant"]["rmse"]))
    table.add_row("Pearson r", _number(task["r"]), "-")
    return table


def _figures_table(title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("figure")
    table.add_column("run", justify="right")
    table.add_column("constant", justify="right")
    return table


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
