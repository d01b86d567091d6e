"""Where several people have labelled the same subjects: the model against each of them, and they against one another.

In: the labels of one subject as the model, the task's own labels and each further reader's give them.  Out: a row for each pair.
A further reader's labels are a task of the shards like any other, of the same kind and classes, that the run need not have
learnt: `tissue` and `tissue_b`. How well two people agree is what a model can be asked for.
Figures: of segmentations Dice, HD95, average surface distance and surface Dice by class; of classifications the share of equal
answers and Cohen's kappa; of regressions the differences' mean size, bias and limits (Bland-Altman), and r.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from mri_ds.config import TaskConfig, nearest
from mri_ds.errors import InputError
from mri_ds.evaluation.figures import Figures, regression_figures, score_subject, scored_classes
from mri_ds.inference.subject import ClassScores, LabelMap, Prediction
from mri_ds.metrics.classification import cohens_kappa
from mri_ds.metrics.statistics import Patients, bootstrap_intervals, mean_interval

MODEL = "model"
BY_CLASS = ("dice", "hd95_mm", "assd_mm", "surface_dice")
OF_ANSWERS = ("accuracy", "kappa")
OF_NUMBERS = ("mae", "r", "bias", "lower", "upper")

Readers = Mapping[str, Sequence[str]]  # task -> tasks of the shards that hold further readers' labels of it


def check_readers(readers: Readers, learnt: Mapping[str, TaskConfig], stored: Mapping[str, TaskConfig], where: str) -> None:
    """Raises InputError for a task the run has not, a reader the shards have not, or one whose labels are of another kind."""
    for task, others in readers.items():
        if task not in learnt:
            raise InputError(f"the run has no task {task}", where="--reader", fix=nearest(task, list(learnt)))
        for other in others:
            if other not in stored or other == task:
                fix = nearest(other, [name for name in stored if name != task])
                raise InputError(f"no further labels {other} here", where=where, fix=fix)
            kinds = [(each.kind, each.classes) for each in (learnt[task], stored[other])]
            if kinds[0] != kinds[1]:
                what = f"{other} is {kinds[1][0]} {kinds[1][1]}, and {task} is {kinds[0][0]} {kinds[0][1]}"
                raise InputError(what, where=where, fix="name labels of the same kind and classes")


def compare_pairs(
    task: str,
    others: Sequence[str],
    prediction: Prediction,
    targets: Mapping[str, Any],
    spacing_mm: np.ndarray,
    **options: Any,
) -> dict[tuple[str, str], Any]:
    """One subject: {(a, b): what `agreement` needs} of all pairs of model and readers that have labelled it.

    options: those of `score_subject`.
    """
    labels = {MODEL: _answer(prediction)} | {name: targets[name] for name in (task, *others) if name in targets}
    if not isinstance(prediction, LabelMap):
        return {(a, b): (labels[a], labels[b]) for a, b in combinations(labels, 2)}
    pairs = {}
    for a, b in combinations(labels, 2):
        scored = score_subject(LabelMap(labels[a], prediction.classes), labels[b], spacing_mm, **options)
        pairs[a, b] = {key: scored[key] for key in BY_CLASS}
    return pairs


def agreement(
    task: TaskConfig, pairs: Sequence[Mapping[tuple[str, str], Any]], *, ignore: str = "", patients: Patients | None = None
) -> list[Figures]:
    """Over all subjects: a row {"a", "b", "num_subjects", "figures", "interval"} for each pair, on the subjects both have.

    patients: whose each subject is; those of one patient are drawn together for the intervals.
    """
    names = list(dict.fromkeys(pair for subject in pairs for pair in subject))
    rows = []
    for pair in names:
        both = [subject[pair] for subject in pairs if pair in subject]
        whose = [patients[i] for i, subject in enumerate(pairs) if pair in subject] if patients is not None else None
        is_map = task.kind == "segmentation"
        figures, interval = _by_class(task, both, ignore, whose) if is_map else _of_values(task, both, whose)
        rows.append({"a": pair[0], "b": pair[1], "num_subjects": len(both), "figures": figures, "interval": interval})
    return rows


def _answer(prediction: Prediction) -> Any:
    if isinstance(prediction, LabelMap):
        return prediction.labels
    return prediction.index if isinstance(prediction, ClassScores) else prediction.value


def _by_class(task: TaskConfig, both: list[Figures], ignore: str, patients: Patients | None) -> tuple[Figures, Figures]:
    figures, interval = dict[str, Any](), dict[str, Any]()
    for key in BY_CLASS:
        columns = {name: np.array([subject[key][name] for subject in both]) for name in scored_classes(task, ignore)}
        defined = {name: column[~np.isnan(column)] for name, column in columns.items()}
        figures[key] = {name: float(values.mean()) if len(values) else float("nan") for name, values in defined.items()}
        interval[key] = {name: mean_interval(column, patients=patients) for name, column in columns.items()}
    return figures, interval


def _of_values(task: TaskConfig, both: list[tuple[float, float]], patients: Patients | None) -> tuple[Figures, Figures]:
    table = np.array(both, dtype=np.float64)

    def figures(chosen: np.ndarray) -> np.ndarray:
        one, other = table[chosen].T
        if task.kind == "regression":
            found = regression_figures(truth=other, predicted=one)
            return np.array([found[key] for key in OF_NUMBERS])
        one, other = one.astype(np.int64), other.astype(np.int64)
        return np.array([(one == other).mean(), cohens_kappa(one, other, len(task.classes))])

    names = OF_NUMBERS if task.kind == "regression" else OF_ANSWERS
    found = figures(np.arange(len(table)))
    return dict(zip(names, found.tolist())), dict(zip(names, bootstrap_intervals(figures, len(table), patients=patients)))
