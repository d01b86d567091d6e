"""From a run's mistakes on validation subjects to RUN/calibration.json, which says how far its predictions can be trusted.

Axes: K classes, D H W voxels of the network's grid.
In: a Run, shards, and how often sets and intervals shall hold the truth.  Out: the content of calibration.json:

    {"coverage": 0.9, "split": "val", "subjects": [who it was fitted on], "tasks": {
       "lesion": {"kind": "classification", "temperature", "threshold": of a class in the set, "nll": {"before", "after"}},
       "age": {"kind": "regression", "half_width": of the interval, "unit"; "spread" where it tells its own deviation},
       "tissue": {"kind": "segmentation", "temperature", "nll", "volume_ml": {class: {"relative", "offset_ml"}},
                  "region": {"share": 0.95, "threshold": {class: probability}},
                  "quality": {class: {"intercept", "slope"}}, "quality_half_width": {class: of the interval of Dice},
                  "quality_rank_correlation": {class: r}}}}

Each task has "scores" too, of which inference/calibration.py makes the bounds of another coverage.

Of a patient with several scans the first one counts: a coverage is promised to further patients, and scans of one are no
independent cases (Dunn et al. 2023: one of each group keeps the promise). A bound that too few subjects give no ground for is
None: nothing is promised. Each subject is predicted three times: for its scores, for its probabilities at the temperature found,
and as `predict` does, whose volumes and Dice are what is told of.
"""

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from mri_ds.config import TaskConfig
from mri_ds.data.index import ShardDataset
from mri_ds.data.manifest import read_manifest
from mri_ds.errors import InputError
from mri_ds.evaluation.evaluate import open_split
from mri_ds.evaluation.figures import json_ready
from mri_ds.inference import conformal
from mri_ds.inference.calibration import Calibration, TaskCalibration
from mri_ds.inference.expected import structure_scores
from mri_ds.inference.quality import fit_line, line_errors
from mri_ds.inference.run import Run
from mri_ds.inference.subject import LabelMap, predict_sample
from mri_ds.inference.temperature import fit_spread, fit_temperature, nll
from mri_ds.inference.uncertainty import network_outputs, probabilities
from mri_ds.metrics.overlap import dice
from mri_ds.sample import log_variance

FILE = "calibration.json"
SPLITS = ("val", "validation", "test")  # the first of these that the shards have
VOXELS = 20_000  # per subject at most, from the box of what is or was called a structure
ALL_SCORES = 10**8  # of all classes of all those voxels: 400 MB
MARGIN = 3  # voxels around that box
REGION_SHARE = 0.95  # of a structure's voxels, that a region promises to hold
Fitted = dict[str, Any]


def calibrate(
    run: Run,
    shards: str | Path,
    *,
    split: str = "",
    coverage: float = 0.9,
    progress: Callable[[int, int], None] | None = None,
) -> Fitted:
    """The content of calibration.json. split "": the first of val, validation and test that the shards have.

    Raises InputError for a coverage outside 0..1, and for shards that are not of the run's tasks and channels.
    """
    if not 0 < coverage < 1:
        raise InputError(f"coverage {coverage}", fix="choose a number between 0 and 1, as 0.9")
    split = split or next((name for name in SPLITS if name in read_manifest(Path(shards)).splits), SPLITS[-1])
    dataset = open_split(run, shards, split)
    chosen = list({dataset.patient(i): i for i in reversed(range(len(dataset)))}.values())[::-1]
    voxel_tasks = [name for name, task in run.config.tasks.items() if task.kind == "segmentation"]
    num_rounds = 2 if voxel_tasks else 1

    def report(rounds: int, done: int) -> None:
        if progress is not None:
            progress(rounds * len(chosen) + done, num_rounds * len(chosen))

    seen = []
    for number, i in enumerate(chosen):
        seen.append(_raw(run, dataset, i, voxel_tasks))
        report(0, number + 1)
    tasks: dict[str, Fitted] = {}
    for name, task in run.config.tasks.items():
        cases = [one[name] for one in seen if name in one]
        tasks[name] = {"kind": task.kind, **FITS[task.kind](task, cases, coverage), "num_subjects": len(cases)}
    rows: dict[str, list[Fitted]] = {name: [] for name in voxel_tasks}
    for number, i in enumerate(chosen if voxel_tasks else []):
        for name, row in _with_probabilities(run, dataset, i, {n: tasks[n]["temperature"] for n in voxel_tasks}).items():
            rows[name].append(row)
        report(1, number + 1)
    for name in voxel_tasks:
        tasks[name] |= _fit_structures(run.config.tasks[name], rows[name], coverage)
    subjects = [dataset.subject_ids[i] for i in chosen]
    ready: Fitted = json_ready({"coverage": coverage, "split": split, "subjects": subjects, "tasks": tasks})
    return ready


def write_calibration(run_dir: str | Path, fitted: Fitted) -> Path:
    """RUN/calibration.json, complete or not at all."""
    path = Path(run_dir) / FILE
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    partial.write_text(json.dumps(fitted, indent=1, allow_nan=False) + "\n")
    os.replace(partial, path)
    return path


# ---- what one subject tells --------------------------------------------------------------------------------------------


def _raw(run: Run, dataset: ShardDataset, index: int, voxel_tasks: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Per labelled task (logits, truth) or (prediction, truth, standard deviation or nan)."""
    sample = dataset.read(index)
    outputs, targets, _ = network_outputs(run, sample)
    cases: dict[str, tuple[Any, ...]] = {}
    for name, task in run.config.tasks.items():
        if name not in targets:
            continue
        raw = outputs[name][0].double().cpu().numpy()
        if name in voxel_tasks:
            ignore = run.config.loss.of(name).ignore
            limit = min(VOXELS, ALL_SCORES // (len(raw) * len(dataset)))
            cases[name] = _some_voxels(
                raw, targets[name], limit, ignored=task.classes.index(ignore) if ignore else -1, seed=index
            )
        elif task.kind == "classification":
            cases[name] = (raw[None], np.array([int(targets[name])]))
        else:
            spread = outputs.get(log_variance(name))
            deviation = math.nan if spread is None else task.std * math.exp(float(spread[0]) / 2)
            cases[name] = (float(raw), float(targets[name]), deviation)
    return cases


def _some_voxels(logits: np.ndarray, truth: np.ndarray, limit: int, *, ignored: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, K) and (n,) of at most `limit`, drawn evenly from the box around truth and prediction; far background says nothing.

    Voxels of the class `ignored` are left out.
    """
    found = np.argwhere((truth > 0) | (logits.argmax(axis=0) > 0))
    if not len(found):
        return np.zeros((0, len(logits))), np.zeros(0, dtype=np.int64)
    low, high = np.maximum(found.min(axis=0) - MARGIN, 0), found.max(axis=0) + MARGIN + 1
    box = tuple(slice(a, b) for a, b in zip(low, high))
    z, y = logits[:, *box].reshape(len(logits), -1).T, truth[box].ravel().astype(np.int64)
    chosen = np.random.default_rng(seed).permutation(np.flatnonzero(y != ignored))[: max(limit, 1)]
    return z[chosen].astype(np.float32), y[chosen]


def _with_probabilities(run: Run, dataset: ShardDataset, index: int, temperatures: dict[str, float]) -> dict[str, Fitted]:
    """Per labelled segmentation, each a list over the classes but 0: soft Dice, Dice, volumes in mL, scores of regions."""
    sample = dataset.read(index)
    outputs, targets, _ = network_outputs(run, sample)
    softened = Calibration(tasks={name: TaskCalibration(temperature=one) for name, one in temperatures.items()})
    predictions = predict_sample(replace(run, calibration=softened), sample, quality=True)
    voxel_ml = float(np.prod(sample["spacing_mm"])) / 1000
    rows: dict[str, Fitted] = {}
    for name, temperature in temperatures.items():
        if name not in targets:
            continue
        task, prediction = run.config.tasks[name], predictions[name]
        assert isinstance(prediction, LabelMap)
        assert prediction.sums is not None
        p = probabilities(outputs[name][0], temperature)
        numbers = range(1, len(task.classes))
        own, truth = prediction.labels, sample["targets"][name]
        rows[name] = {
            "soft": structure_scores(prediction.sums, task),
            "dice": [dice(truth == k, own == k) for k in numbers],
            "truth_ml": [float((truth == k).sum()) * voxel_ml for k in numbers],
            "prediction_ml": [float((own == k).sum()) * voxel_ml for k in numbers],
            "region": [_region(p[k], targets[name] == k) for k in numbers],
        }
    return rows


def _region(probability: np.ndarray, is_there: np.ndarray) -> float:
    return conformal.region_score(probability[is_there], REGION_SHARE) if is_there.any() else math.nan


# ---- what all of them tell together --------------------------------------------------------------------------------------


def _fit_classes(task: TaskConfig, cases: list[tuple[Any, ...]], coverage: float) -> Fitted:
    logits = np.concatenate([z for z, _ in cases]) if cases else np.zeros((0, len(task.classes)))
    truth = np.concatenate([y for _, y in cases]) if cases else np.zeros(0, dtype=np.int64)
    temperature = fit_temperature(logits, truth)
    shares = _softmax(logits / temperature)
    return {
        "temperature": temperature,
        "threshold": conformal.class_threshold(shares, truth, coverage),
        "scores": sorted(shares[np.arange(len(truth)), truth].tolist()),
        "nll": {"before": nll(logits, truth), "after": nll(logits, truth, temperature)},
    }


def _fit_voxels(task: TaskConfig, cases: list[tuple[Any, ...]], coverage: float) -> Fitted:
    fitted = _fit_classes(task, cases, coverage)
    del fitted["threshold"], fitted["scores"]  # voxels of one subject are no independent cases
    return fitted


def _fit_values(task: TaskConfig, cases: list[tuple[Any, ...]], coverage: float) -> Fitted:
    table = np.array(cases, dtype=np.float64).reshape(-1, 3)
    fitted: Fitted = {"half_width": conformal.half_width(table[:, 1], table[:, 0], coverage), "unit": task.unit}
    fitted["scores"] = sorted(np.abs(table[:, 1] - table[:, 0]).tolist())
    if len(table) and np.isfinite(table[:, 2]).all():
        fitted["spread"] = fit_spread(table[:, 0] - table[:, 1], table[:, 2])
    return fitted


FITS: dict[str, Callable[[TaskConfig, list[tuple[Any, ...]], float], Fitted]] = {
    "segmentation": _fit_voxels,
    "classification": _fit_classes,
    "regression": _fit_values,
}


def _fit_structures(task: TaskConfig, rows: list[Fitted], coverage: float) -> Fitted:
    """A subject without a structure counts for its volume, where 0 mL is right, and for nothing else."""
    fitted: Fitted = {"volume_ml": {}, "region": {"share": REGION_SHARE, "threshold": {}}, "quality": {}}
    fitted |= {"quality_half_width": {}, "quality_rank_correlation": {}, "scores": {"volume_ml": {}, "quality": {}}}
    for k, label in enumerate(task.classes[1:]):
        column = {key: np.array([row[key][k] for row in rows], dtype=np.float64) for key in rows[0]} if rows else _nothing()
        relative, offset_ml = conformal.volume_scale(column["truth_ml"], column["prediction_ml"], coverage)
        fitted["volume_ml"][label] = {"relative": relative, "offset_ml": offset_ml}
        fitted["scores"]["volume_ml"][label] = sorted(
            (np.abs(column["truth_ml"] - column["prediction_ml"]) / (column["prediction_ml"] + offset_ml)).tolist()
        )
        scores = column["region"][np.isfinite(column["region"])]
        fitted["region"]["threshold"][label] = conformal.region_threshold(scores, coverage)
        fitted["quality"][label] = asdict(fit_line(column["soft"], column["dice"]))
        errors = line_errors(column["soft"], column["dice"])
        fitted["quality_half_width"][label] = conformal.quantile(errors, coverage)
        fitted["scores"]["quality"][label] = sorted(errors.tolist())
        fitted["quality_rank_correlation"][label] = _rank_correlation(column["soft"], column["dice"])
    return fitted


def _nothing() -> dict[str, np.ndarray]:
    return {key: np.zeros(0) for key in ("soft", "dice", "truth_ml", "prediction_ml", "region")}


def _rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    known = np.isfinite(x) & np.isfinite(y)
    if known.sum() < 3 or np.ptp(x[known]) == 0 or np.ptp(y[known]) == 0:
        return math.nan
    return float(stats.spearmanr(x[known], y[known]).statistic)


def _softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True, initial=-np.inf))
    shares: np.ndarray = e / e.sum(axis=1, keepdims=True)
    return shares
