"""Best, median and worst subject, predicted anew by the network that did not train on them: pictures, and the viewer's volumes.

In: Gathered.  Out: Cases. A subject's score is its mean Dice over the defined classes of all segmentations; in a run without
any, the probability given to the true class, or minus the absolute error of the first regression.
"""

import base64
import io
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mri_ds.data.index import ShardDataset
from mri_ds.errors import InputError
from mri_ds.evaluation.evaluate import open_split
from mri_ds.inference.picture import BACKGROUND, case_figure
from mri_ds.inference.run import Run, load_run
from mri_ds.inference.subject import ClassScores, LabelMap, Prediction, Value, predict_sample
from mri_ds.metrics.overlap import dice
from mri_ds.report.gather import Gathered
from mri_ds.report.volumes import viewer_case
from mri_ds.sample import Sample

SAME = 1e-3  # Dice of a case may differ by this from the evaluation's


@dataclass(frozen=True)
class Case:
    """`rank`: best, median or worst. pictures: [(WebP as base64, alternative text)]. told: one line per task."""

    rank: str
    subject_id: str
    score: float
    score_name: str
    pictures: list[tuple[str, str]] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    seconds: float = 0.0
    viewer: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        numbers = {"rank": self.rank, "subject_id": self.subject_id, "score": self.score, "score_name": self.score_name}
        return {**numbers, "seconds": self.seconds, "told": self.told}


def chosen(g: Gathered) -> list[Case]:
    """Best, median (the lower of two) and worst subject of the evaluation, each once; without pictures."""
    scored = [(score, subject["subject_id"]) for subject in g.subjects if (score := score_of(g, subject)) is not None]
    scored.sort()
    if not scored:
        return []
    name = _score_name(g)
    places = {"best": len(scored) - 1, "worst": 0, "median": (len(scored) - 1) // 2}
    kept: dict[int, str] = {}
    for rank, place in places.items():
        kept.setdefault(place, rank)
    return [Case(kept[place], scored[place][1], scored[place][0], name) for place in sorted(kept, reverse=True)]


def draw(g: Gathered, cases: list[Case], *, progress: Callable[[int, int], None] | None = None) -> tuple[list[Case], list[str]]:
    """The cases with pictures, and what a reader must know; without shards or weights the cases as they were."""
    by_id = {subject["subject_id"]: subject for subject in g.subjects}
    drawn: list[Case] = []
    notes: list[str] = []
    runs: dict[Path, Run] = {}
    try:
        for number, case in enumerate(cases):
            drawn.append(_draw(g, case, by_id[case.subject_id], runs, notes))
            if progress is not None:
                progress(number + 1, len(cases))
    except InputError as err:
        return cases, [f"No pictures: {err}"]
    return drawn, notes


def score_of(g: Gathered, subject: Mapping[str, Any]) -> float | None:
    """Larger is better; None where nothing is defined."""
    kinds = {kind: [name for name in g.tasks if g.tasks[name]["kind"] == kind and name in subject] for kind in _KINDS}
    if _has(g, "segmentation"):
        values = [v for name in kinds["segmentation"] for v in subject[name]["dice"].values() if v is not None]
        return sum(values) / len(values) if values else None
    if _has(g, "classification"):
        values = [subject[name]["probabilities"][subject[name]["truth"]] for name in kinds["classification"]]
        return sum(values) / len(values) if values else None
    first = kinds["regression"][:1]
    return -abs(subject[first[0]]["prediction"] - subject[first[0]]["truth"]) if first else None


_KINDS = ("segmentation", "classification", "regression")


def _has(g: Gathered, kind: str) -> bool:
    return any(task["kind"] == kind for task in g.tasks.values())


def _score_name(g: Gathered) -> str:
    names = {"segmentation": "mean Dice", "classification": "probability of the true class", "regression": "minus absolute error"}
    return next(names[kind] for kind in _KINDS if _has(g, kind))


def _draw(g: Gathered, case: Case, subject: dict[str, Any], runs: dict[Path, Run], notes: list[str]) -> Case:
    if (member := g.member_of(subject)) not in runs:
        runs[member] = load_run(member)
    run = runs[member]
    sample = _read(g, subject, run)
    began = time.perf_counter()
    predictions = predict_sample(run, sample)
    seconds = time.perf_counter() - began
    pictures = []
    for name, prediction in predictions.items():
        if isinstance(prediction, LabelMap):
            truth = sample["targets"].get(name)
            title = f"{case.subject_id} · {name}"
            what = "image, truth and prediction" if truth is not None else "image and prediction"
            alt = f"{case.rank} case, {case.subject_id}, {name}: {what} in three planes"
            pictures.append((_picture(sample, truth, prediction, title), alt))
            _check(case, name, subject.get(name), truth, prediction, notes)
    if not pictures:
        alt = f"{case.rank} case, {case.subject_id}: the image in three planes"
        pictures.append((_picture(sample, None, None, case.subject_id), alt))
    told = [_told(name, prediction, subject.get(name)) for name, prediction in predictions.items()]
    viewer = viewer_case(sample, predictions)
    return Case(case.rank, case.subject_id, case.score, case.score_name, pictures, told, seconds, viewer)


def _read(g: Gathered, subject: dict[str, Any], run: Run) -> Sample:
    shards = g.shards_of(subject)
    if shards is None:
        raise InputError("the shards are not where the training found them", fix="give them with --data DIR")
    split = (g.evaluation or {}).get("split") or "test"
    for name in (split, *(other for other in ("test", "train") if other != split)):
        dataset = _split(run, shards, name)
        if dataset is not None and subject["subject_id"] in dataset.subject_ids:
            return dataset.read(dataset.subject_ids.index(subject["subject_id"]))
    raise InputError(f"no subject {subject['subject_id']} here", where=shards, fix="give the shards it was evaluated on (--data)")


def _split(run: Run, shards: Path, name: str) -> ShardDataset | None:
    try:
        return open_split(run, shards, name)
    except InputError as err:
        if "split" in str(err):
            return None
        raise


def _picture(sample: Sample, truth: np.ndarray | None, prediction: LabelMap | None, title: str) -> str:
    labels, classes = (prediction.labels, prediction.classes) if prediction else (None, ["background"])
    figure = case_figure(sample["image"][0], truth, labels, classes, title, spacing_mm=sample["spacing_mm"])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="webp", dpi=110, facecolor=BACKGROUND, pil_kwargs={"quality": 82})
    return base64.b64encode(buffer.getvalue()).decode()


def _check(
    case: Case, task: str, own: Mapping[str, Any] | None, truth: np.ndarray | None, prediction: LabelMap, notes: list[str]
) -> None:
    """A picture that is not of the prediction that was scored says so."""
    for label, scored in ((own or {}).get("dice") or {}).items():
        if truth is None or scored is None:
            continue
        k = prediction.classes.index(label)
        now = dice(truth == k, prediction.labels == k)
        if math.isnan(now) or abs(now - scored) > SAME:
            notes.append(
                f"{case.subject_id}: the picture's Dice of {label} is {now:.3f} and the evaluation's {scored:.3f}: "
                f"the weights, or the options of `mri-ds evaluate` ({task}), are not those of the picture"
            )
            return


def _told(name: str, prediction: Prediction, own: Mapping[str, Any] | None) -> str:
    if isinstance(prediction, LabelMap):
        scores = ((own or {}).get("dice") or {}).items()
        return f"{name}: " + (", ".join(f"{label} {'–' if v is None else f'{v:.3f}'}" for label, v in scores) or "no label")
    truth = "" if own is None else f", truth {own['truth']:.4g}" if isinstance(prediction, Value) else f", truth {own['truth']}"
    if isinstance(prediction, ClassScores):
        return f"{name}: {prediction.class_name} ({prediction.probabilities.max():.0%}){truth}"
    return f"{name}: {prediction.value:.4g} {prediction.unit}{truth}"
