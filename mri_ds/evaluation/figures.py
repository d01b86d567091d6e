"""From predictions to figures: one subject's, then a task's over all subjects, each beside a predictor that never looks.

Axes: D H W voxels of the native grid, N subjects, K classes.
In: predictions and targets.  Out: plain dictionaries; a figure that is not defined is nan here (None once `json_ready`).

Constant predictors know the training subjects only: for each class of a segmentation one that calls every voxel that class; for
a classification the majority class, with the class shares as its probabilities; for a regression the mean.
Empty masks follow metrics: absent from both truth and prediction is not scored, absent from one is Dice 0 and the diagonal.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from mri_ds.config import TaskConfig
from mri_ds.inference.subject import ClassScores, LabelMap, Prediction
from mri_ds.metrics.classification import balanced_accuracy, confusion_matrix, roc_auc_ovr
from mri_ds.metrics.overlap import dice
from mri_ds.metrics.regression import mae, pearson_r, rmse
from mri_ds.metrics.surface import hd95_mm

Figures = dict[str, Any]


def score_subject(prediction: Prediction, truth: Any, spacing_mm: np.ndarray) -> Figures:
    """One task of one subject. truth: (D, H, W) labels, a class index, or a number."""
    if isinstance(prediction, LabelMap):
        return _score_labels(prediction, truth, spacing_mm)
    if isinstance(prediction, ClassScores):
        probabilities = dict(zip(prediction.classes, prediction.probabilities.tolist()))
        return {"truth": prediction.classes[int(truth)], "prediction": prediction.class_name, "probabilities": probabilities}
    return {"truth": float(truth), "prediction": prediction.value}


def summarize(task: TaskConfig, trained: TaskConfig, scored: list[Figures]) -> Figures:
    """One task over the subjects that have its label; `trained` carries the training subjects' class_prior or mean."""
    if task.kind == "segmentation":
        return _summarize_segmentation(task.classes[1:], scored)
    if task.kind == "classification":
        return _summarize_classification(task.classes, trained.class_prior, scored)
    return _summarize_regression(task.unit, trained.mean, scored)


def json_ready(value: Any) -> Any:
    """Nested dictionaries and lists with None where a number is nan or infinite, which JSON does not know."""
    if isinstance(value, dict):
        return {key: json_ready(item) for key, item in value.items()}
    if isinstance(value, list):
        return [json_ready(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _score_labels(prediction: LabelMap, truth: np.ndarray, spacing_mm: np.ndarray) -> Figures:
    by_class: Figures = {"dice": {}, "hd95_mm": {}, "dice_constant": {}, "truth_ml": {}, "prediction_ml": {}}
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    for label, name in enumerate(prediction.classes[1:], start=1):
        in_truth, in_prediction = truth == label, prediction.labels == label
        by_class["dice"][name] = dice(in_truth, in_prediction)
        by_class["hd95_mm"][name] = hd95_mm(in_truth, in_prediction, spacing_mm)
        by_class["dice_constant"][name] = dice(in_truth, np.ones_like(in_truth))
        by_class["truth_ml"][name] = float(in_truth.sum()) * voxel_ml
        by_class["prediction_ml"][name] = float(in_prediction.sum()) * voxel_ml
    return by_class


def _summarize_segmentation(classes: list[str], scored: list[Figures]) -> Figures:
    figures: Figures = {"kind": "segmentation", "dice_mean": math.nan}
    for key in ("dice", "hd95_mm"):
        figures[key] = {name: _mean(subject[key][name] for subject in scored) for name in classes}
    figures |= {"num_scored": {}, "num_missed": {}, "num_false_alarm": {}, "num_empty": {}}
    for name in classes:
        found = [(subject["truth_ml"][name] > 0, subject["prediction_ml"][name] > 0) for subject in scored]
        figures["num_empty"][name] = found.count((False, False))  # nothing to find, nothing found: not scored
        figures["num_missed"][name] = found.count((True, False))
        figures["num_false_alarm"][name] = found.count((False, True))
        figures["num_scored"][name] = len(found) - figures["num_empty"][name]
    figures["dice_mean"] = _mean(figures["dice"].values())
    constant = {name: _mean(subject["dice_constant"][name] for subject in scored) for name in classes}
    figures["constant"] = {"dice": constant, "dice_mean": _mean(constant.values())}
    return figures


def _summarize_classification(classes: list[str], prior: list[float], scored: list[Figures]) -> Figures:
    truth = np.array([classes.index(subject["truth"]) for subject in scored], dtype=np.int64)
    probabilities = np.array([[subject["probabilities"][name] for name in classes] for subject in scored])
    shares = np.array(prior or [1 / len(classes)] * len(classes))
    figures = _classification_figures(truth, probabilities.reshape(-1, len(classes)))
    constant = _classification_figures(truth, np.tile(shares, (len(scored), 1)))
    constant.pop("confusion")
    return {"kind": "classification", **figures, "classes": classes, "num_scored": len(scored), "constant": constant}


def _classification_figures(truth: np.ndarray, probabilities: np.ndarray) -> Figures:
    num_classes = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    return {
        "balanced_accuracy": balanced_accuracy(truth, predicted, num_classes),
        "auc": roc_auc_ovr(truth, probabilities),
        "confusion": confusion_matrix(truth, predicted, num_classes).tolist(),
    }


def _summarize_regression(unit: str, mean: float, scored: list[Figures]) -> Figures:
    truth = np.array([subject["truth"] for subject in scored], dtype=np.float64)
    predicted = np.array([subject["prediction"] for subject in scored], dtype=np.float64)
    constant = np.full_like(truth, mean)
    figures = {"mae": mae(truth, predicted), "rmse": rmse(truth, predicted), "r": pearson_r(truth, predicted)}
    beside = {"mae": mae(truth, constant), "rmse": rmse(truth, constant)}
    counts = {"mae_constant": beside["mae"], "unit": unit, "num_scored": len(scored)}
    return {"kind": "regression", **figures, **counts, "constant": beside}


def _mean(values: Iterable[float]) -> float:
    """Mean of the defined values; nan when there is none."""
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan
