"""From predictions to figures: one subject's, then a task's over all subjects, each beside a predictor that never looks.

Axes: D H W voxels of the native grid, N subjects, K classes.
In: predictions and targets.  Out: plain dictionaries; a figure that is not defined is nan here (None once `json_ready`).

Constant predictors know the training subjects only: for each class of a segmentation one that calls every voxel that class, and
where surfaces or lesions are asked for, one that finds nothing; for a classification the majority class, with the class shares as
its probabilities; for a regression the mean.
Empty masks follow metrics: absent from both truth and prediction is not scored, absent from one is Dice 0 and the diagonal.
Voxels of the task's `ignore` class in the truth count in no figure, and that class has none.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mri_ds.config import TaskConfig
from mri_ds.inference.subject import ClassScores, LabelMap, Prediction
from mri_ds.metrics.calibration import brier_score, calibration_error
from mri_ds.metrics.classification import (
    average_precision,
    balanced_accuracy,
    confusion_matrix,
    matthews_correlation,
    roc_auc,
)
from mri_ds.metrics.lesions import lesion_f1
from mri_ds.metrics.overlap import figures_of_counts, overlap_figures, without_ignored
from mri_ds.metrics.regression import bland_altman, mae, pearson_r, r_squared, rmse
from mri_ds.metrics.statistics import NUM_RESAMPLES, Patients, bootstrap_intervals, mean_interval
from mri_ds.metrics.surface import DISTANCES, SHARES, diagonal_mm, surface_figures

Figures = dict[str, Any]

OVERLAP = ("dice", "iou", "sensitivity", "specificity", "precision", "volume_error")
BY_CLASS = (*OVERLAP, *DISTANCES, *SHARES, "lesion_f1")  # of segmentations
CLASSIFICATION = ("balanced_accuracy", "auc", "average_precision", "mcc", "ece", "brier")
ONE_AGAINST_REST = ("auc", "average_precision", "sensitivity", "specificity", "precision")
REGRESSION = ("mae", "rmse", "r", "r2", "bias", "lower", "upper")


def score_subject(
    prediction: Prediction, truth: Any, spacing_mm: np.ndarray, *, ignore: str = "", tolerance_mm: float = 1.0
) -> Figures:
    """One task of one subject. truth: (D, H, W) labels, a class index, or a number. ignore: a class of a segmentation."""
    if isinstance(prediction, LabelMap):
        return _score_labels(prediction, truth, spacing_mm, ignore, tolerance_mm)
    if isinstance(prediction, ClassScores):
        probabilities = dict(zip(prediction.classes, prediction.probabilities.tolist()))
        return {"truth": prediction.classes[int(truth)], "prediction": prediction.class_name, "probabilities": probabilities}
    return {"truth": float(truth), "prediction": prediction.value}


def summarize(
    task: TaskConfig,
    trained: TaskConfig,
    scored: list[Figures],
    *,
    ignore: str = "",
    num_resamples: int = NUM_RESAMPLES,
    patients: Patients | None = None,
) -> Figures:
    """One task over the subjects that have its label; `trained` carries the training subjects' class_prior or mean.

    "interval" has the shape of the figures, each [low, high] of 95 %: subjects drawn anew `num_resamples` times, see
    metrics/statistics.py. patients: whose each subject is; those of one patient are drawn together.
    """
    how: dict[str, Any] = {"num_resamples": num_resamples, "patients": patients}
    num_patients = len(scored) if patients is None else len(set(patients))
    return _summarize(task, trained, scored, ignore, how) | {"num_patients": num_patients}


def _summarize(task: TaskConfig, trained: TaskConfig, scored: list[Figures], ignore: str, how: dict[str, Any]) -> Figures:
    if task.kind == "segmentation":
        return _summarize_segmentation(scored_classes(task, ignore), scored, ignore, how)
    if task.kind == "classification":
        return _summarize_classification(task.classes, trained.class_prior, scored, how)
    return _summarize_regression(task.unit, trained.mean, scored, how)


def scored_classes(task: TaskConfig, ignore: str = "") -> list[str]:
    """The classes of a segmentation that have figures: not the background, not the one to ignore."""
    return [name for name in task.classes[1:] if name != ignore]


def json_ready(value: Any) -> Any:
    """Nested dictionaries and lists with None where a number is nan or infinite, which JSON does not know."""
    if isinstance(value, dict):
        return {key: json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---- segmentation ----------------------------------------------------------------------------------------------------


def _score_labels(prediction: LabelMap, truth: np.ndarray, spacing_mm: np.ndarray, ignore: str, tolerance_mm: float) -> Figures:
    ignored = prediction.classes.index(ignore) if ignore else None
    labels, predicted, counts = without_ignored(truth, prediction.labels, ignored)
    num_counted = int(counts.sum())
    kept = counts if ignore else ...
    keys = (*BY_CLASS, "dice_constant", "truth_ml", "prediction_ml")
    by_class: Figures = {key: {} for key in keys} | {"constant": {key: {} for key in BY_CLASS}}
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    for label, name in enumerate(prediction.classes[1:], start=1):
        if name == ignore:
            continue
        in_truth, in_prediction = labels == label, predicted == label
        size, called = int(in_truth.sum()), int(in_prediction.sum())
        figures = overlap_figures(in_truth[kept], in_prediction[kept])
        figures |= surface_figures(in_truth, in_prediction, spacing_mm, tolerance_mm=tolerance_mm)
        figures["lesion_f1"] = lesion_f1(in_truth, in_prediction)
        constant = _constant_predictor(size, num_counted, diagonal_mm(truth.shape, spacing_mm))
        for key in BY_CLASS:
            by_class[key][name], by_class["constant"][key][name] = figures[key], constant[key]
        by_class["dice_constant"][name] = constant["dice"]
        by_class["truth_ml"][name], by_class["prediction_ml"][name] = size * voxel_ml, called * voxel_ml
    return by_class


def _constant_predictor(size: int, num_voxels: int, largest_mm: float) -> dict[str, float]:
    """Of a structure of `size` voxels: all called it, or, for surfaces and lesions, none."""
    found = figures_of_counts(hit=size, missed=0, false_positive=num_voxels - size, true_negative=0)
    found |= dict.fromkeys(DISTANCES, largest_mm if size else math.nan)
    return found | dict.fromkeys((*SHARES, "lesion_f1"), 0.0 if size else math.nan)


def _summarize_segmentation(classes: list[str], scored: list[Figures], ignore: str, how: dict[str, Any]) -> Figures:
    figures: Figures = {"kind": "segmentation", "dice_mean": math.nan}
    constant, interval, num_defined = dict[str, Any](), dict[str, Any](), dict[str, Any]()
    for key in BY_CLASS:
        table = np.array([[subject[key][name] for name in classes] for subject in scored]).reshape(len(scored), len(classes))
        figures[key] = {name: _mean(table[:, k]) for k, name in enumerate(classes)}
        num_defined[key] = {name: int((~np.isnan(table[:, k])).sum()) for k, name in enumerate(classes)}
        constant[key] = {name: _mean(subject["constant"][key][name] for subject in scored) for name in classes}
        interval[key] = {name: mean_interval(table[:, k], **how) for k, name in enumerate(classes)}
        interval.setdefault("mean", {})[key] = mean_interval(table, **how)
    figures |= {"num_scored": {}, "num_missed": {}, "num_false_alarm": {}, "num_empty": {}, "num_defined": num_defined}
    for name in classes:
        found = [(subject["truth_ml"][name] > 0, subject["prediction_ml"][name] > 0) for subject in scored]
        figures["num_empty"][name] = found.count((False, False))  # nothing to find, nothing found: not scored
        figures["num_missed"][name] = found.count((True, False))
        figures["num_false_alarm"][name] = found.count((False, True))
        figures["num_scored"][name] = len(found) - figures["num_empty"][name]
    figures["mean"] = {key: _mean(figures[key].values()) for key in BY_CLASS}  # over the classes
    constant["mean"] = {key: _mean(constant[key].values()) for key in BY_CLASS}
    figures["dice_mean"], constant["dice_mean"] = figures["mean"]["dice"], constant["mean"]["dice"]
    interval["dice_mean"] = interval["mean"]["dice"]
    return figures | {"constant": constant, "interval": interval, "ignore": ignore, "num_subjects": len(scored)}


# ---- classification --------------------------------------------------------------------------------------------------


def _summarize_classification(classes: list[str], prior: list[float], scored: list[Figures], how: dict[str, Any]) -> Figures:
    truth = np.array([classes.index(subject["truth"]) for subject in scored], dtype=np.int64)
    probabilities = np.array([[subject["probabilities"][name] for name in classes] for subject in scored])
    probabilities = probabilities.reshape(-1, len(classes))
    shares = np.array(prior or [1 / len(classes)] * len(classes))
    figures, by_class = _classification_figures(truth, probabilities)
    constant, constant_by_class = _classification_figures(truth, np.tile(shares, (len(scored), 1)))

    def flat(chosen: np.ndarray) -> np.ndarray:
        overall, rows = _classification_figures(truth[chosen], probabilities[chosen])
        return np.array([*overall.values(), *(value for row in rows for value in row.values())])

    intervals = iter(bootstrap_intervals(flat, len(scored), **how))
    interval: Figures = {key: next(intervals) for key in CLASSIFICATION}
    interval["by_class"] = {name: {key: next(intervals) for key in ONE_AGAINST_REST} for name in classes}
    confusion = confusion_matrix(truth, probabilities.argmax(axis=1), len(classes))
    counts = {"num_scored": len(scored), "num": dict(zip(classes, confusion.sum(axis=1).tolist()))}
    return {
        "kind": "classification",
        **figures,
        "confusion": confusion.tolist(),
        "classes": classes,
        **counts,
        "by_class": dict(zip(classes, by_class)),
        "constant": constant,
        "constant_by_class": dict(zip(classes, constant_by_class)),
        "interval": interval,
    }


def _classification_figures(truth: np.ndarray, probabilities: np.ndarray) -> tuple[dict[str, float], list[dict[str, float]]]:
    """CLASSIFICATION of the task, and ONE_AGAINST_REST of each class."""
    num_classes = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    confusion = confusion_matrix(truth, predicted, num_classes)
    rows = []
    for k in range(num_classes):
        hit, called, there = confusion[k, k], confusion[:, k].sum(), confusion[k].sum()
        counts = {"hit": hit, "missed": there - hit, "false_positive": called - hit}
        found = figures_of_counts(**counts, true_negative=len(truth) - there - called + hit)
        found["auc"] = roc_auc(truth == k, probabilities[:, k])
        found["average_precision"] = average_precision(truth == k, probabilities[:, k])
        rows.append({key: found[key] for key in ONE_AGAINST_REST})
    overall = {
        "balanced_accuracy": balanced_accuracy(truth, predicted, num_classes),
        "auc": _mean(row["auc"] for row in rows),  # metrics' roc_auc_ovr and average_precision_ovr, without finding them twice
        "average_precision": _mean(row["average_precision"] for row in rows),
        "mcc": matthews_correlation(truth, predicted, num_classes),
        "ece": calibration_error(truth, probabilities),
        "brier": brier_score(truth, probabilities),
    }
    return overall, rows


# ---- regression ------------------------------------------------------------------------------------------------------


def _summarize_regression(unit: str, mean: float, scored: list[Figures], how: dict[str, Any]) -> Figures:
    truth = np.array([subject["truth"] for subject in scored], dtype=np.float64)
    predicted = np.array([subject["prediction"] for subject in scored], dtype=np.float64)
    constant = np.full_like(truth, mean)
    beside = regression_figures(truth, constant)
    intervals = bootstrap_intervals(
        lambda chosen: np.array(list(regression_figures(truth[chosen], predicted[chosen]).values())),
        len(scored),
        **how,
    )
    counts = {"mae_constant": beside["mae"], "unit": unit, "num_scored": len(scored)}
    interval = dict(zip(REGRESSION, intervals))
    return {"kind": "regression", **regression_figures(truth, predicted), **counts, "constant": beside, "interval": interval}


def regression_figures(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """REGRESSION: errors, correlation, explained share, and Bland-Altman's bias and limits of agreement."""
    bias, lower, upper = bland_altman(truth, predicted)
    errors = {"mae": mae(truth, predicted), "rmse": rmse(truth, predicted), "r": pearson_r(truth, predicted)}
    return errors | {"r2": r_squared(truth, predicted), "bias": bias, "lower": lower, "upper": upper}


def _mean(values: Iterable[float] | Sequence[float]) -> float:
    """Mean of the defined values; nan when there is none."""
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan
