"""How good a run is on subjects that training never saw, beside a predictor that never looks.

Axes: D H W voxels of the native grid, K classes.
In: a Run and a folder of shards.  Out: plain dictionaries for JSON; what is not defined (no subject had the class) is None.

    {"tasks": {"tissue": {"kind": "segmentation", "dice_mean", "dice": {class: x}, "hd95_mm": {class: x}, ... each of
                          figures.BY_CLASS; "mean": {figure: x} over the classes; "num_scored": {class: n}, "num_missed",
                          "num_false_alarm", "num_empty", "num_defined": {figure: {class: n}}, "ignore": class or ""},
               "lesion": {"kind": "classification", each of figures.CLASSIFICATION, "by_class": {class: {figure: x}},
                          "confusion": K rows by truth, "classes", "num_scored", "num": {class: n}, "constant_by_class"},
               "age": {"kind": "regression", each of figures.REGRESSION, "mae_constant", "unit", "num_scored"}},
     "strata": {"site": {level: {"num_subjects", "tasks": as above}}}, "strata_of_subjects": {subject_id: {stratum: level}},
     "agreement": {task: [{"a", "b", "num_subjects", "figures", "interval"}]}, see readers.py,
     "subjects": [{"subject_id", task: {...}}], "num_subjects": n, "patients": {subject_id: whose scan it is}, "num_patients",
     "split", "tolerance_mm"}

A subject is a scan; several may be of one patient, and then intervals are those of as many patients (metrics/statistics.py).
Every task has "num_patients", "constant", its figures as the constant predictor has them, and "interval", of the same shape,
[low, high] of 95 %.
Means are over the subjects whose figure is defined; how empty masks count is said in metrics/overlap.py and metrics/surface.py.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mri_ds.data.index import ShardDataset
from mri_ds.errors import InputError
from mri_ds.evaluation.figures import Figures, json_ready, score_subject, summarize
from mri_ds.evaluation.readers import Readers, agreement, check_readers, compare_pairs
from mri_ds.evaluation.strata import NUM_RESAMPLES, by_stratum, strata_of_subject
from mri_ds.inference.picture import draw_case
from mri_ds.inference.run import Run
from mri_ds.inference.subject import LabelMap, predict_sample

Progress = Callable[[int, int], None]


def evaluate(
    run: Run,
    shards: str | Path,
    *,
    split: str = "test",
    keep_small_parts: bool = False,
    tolerance_mm: float = 1.0,
    readers: Readers | None = None,
    progress: Progress | None = None,
) -> Figures:
    """Predicts every subject of `split` on its native grid and scores it there. `progress` hears (done, total).

    tolerance_mm: of surface Dice. readers: for a task, those tasks of the shards that are further people's labels of it.
    Raises InputError when the shards lack one of the run's tasks, classes, channels or readers, or have no subject in `split`.
    """
    dataset = open_split(run, shards, split)
    readers = readers or {}
    check_readers(readers, run.config.tasks, dataset.tasks, str(shards))
    subjects: list[Figures] = []
    pairs: dict[str, list[Any]] = defaultdict(list)
    patients = [dataset.patient(i) for i in range(len(dataset))]
    ignored = {name: run.config.loss.of(name).ignore for name in run.config.tasks}
    for i in range(len(dataset)):
        sample = dataset.read(i)
        figures: Figures = {"subject_id": sample["subject_id"]}
        for name, prediction in predict_sample(run, sample, keep_small_parts=keep_small_parts).items():
            spacing_mm = sample["spacing_mm"]
            options: dict[str, Any] = {"ignore": ignored[name], "tolerance_mm": tolerance_mm}
            if name in sample["targets"]:
                figures[name] = score_subject(prediction, sample["targets"][name], spacing_mm, **options)
            if others := readers.get(name):
                pairs[name].append(compare_pairs(name, others, prediction, sample["targets"], spacing_mm, **options))
        subjects.append(figures)
        if progress is not None:
            progress(i + 1, len(dataset))

    def summary(name: str, chosen: Sequence[int], **options: Any) -> Figures | None:
        labelled = [i for i in chosen if name in subjects[i]]
        scored, whose = [subjects[i][name] for i in labelled], [patients[i] for i in labelled]
        task, trained = run.config.tasks[name], dataset.manifest.tasks[name]
        if not scored and options:
            return None
        return summarize(task, trained, scored, ignore=ignored[name], patients=whose, **options)

    levels = [strata_of_subject(dataset, i) for i in range(len(dataset))]
    names = list(run.config.tasks)
    return json_ready(
        {
            "tasks": {name: summary(name, range(len(subjects))) for name in names},
            "strata": by_stratum(
                levels, names, lambda name, group: summary(name, group, num_resamples=NUM_RESAMPLES), patients=patients
            ),
            "strata_of_subjects": {subject["subject_id"]: level for subject, level in zip(subjects, levels)},
            "agreement": {
                name: agreement(run.config.tasks[name], found, ignore=ignored[name], patients=patients)
                for name, found in pairs.items()
            },
            "subjects": subjects,
            "num_subjects": len(subjects),
            "patients": {subject["subject_id"]: patient for subject, patient in zip(subjects, patients)},
            "num_patients": len(set(patients)),
            "split": split,
            "tolerance_mm": tolerance_mm,
        }
    )


def draw_first_case(run: Run, shards: str | Path, split: str, path: str | Path) -> Path | None:
    """The first subject of `split` with a labelled segmentation, drawn as a PNG; None when there is none."""
    dataset = open_split(run, shards, split)
    for name, task in run.config.tasks.items():
        i = next((i for i in range(len(dataset)) if dataset.has_label(i, name)), None)
        if task.kind != "segmentation" or i is None:
            continue
        sample = dataset.read(i)
        prediction = predict_sample(run, sample)[name]
        assert isinstance(prediction, LabelMap)
        title, truth = f"{sample['subject_id']} · {name} · {split}", sample["targets"][name]
        shown = sample["image"][0]
        return draw_case(path, shown, truth, prediction.labels, task.classes, title, spacing_mm=sample["spacing_mm"])
    return None


def open_split(run: Run, shards: str | Path, split: str) -> ShardDataset:
    """The subjects of one split, once it is certain that they are what the run was trained for."""
    dataset = ShardDataset(Path(shards), split)
    manifest = dataset.manifest
    known = ", ".join(manifest.tasks) or "none"
    absent = [name for name in run.config.tasks if name not in manifest.tasks]
    if absent:
        raise InputError(
            f"no task {', '.join(absent)} here (found: {known})", where=shards, fix="give shards with the run's tasks"
        )
    for name, task in run.config.tasks.items():
        theirs = manifest.tasks[name]
        if (theirs.kind, theirs.classes) != (task.kind, task.classes):
            what = f"task {name} is {theirs.kind} {theirs.classes} here, and the run learned {task.kind} {task.classes}"
            raise InputError(what, where=shards, fix="give shards with the run's tasks")
    if manifest.channels != run.channels:
        what = f"holds the channels {', '.join(manifest.channels)}, and the run was trained on {', '.join(run.channels)}"
        raise InputError(what, where=shards, fix="give shards of the same channels in the same order")
    if len(dataset) == 0:
        raise InputError(f"no subject in split {split!r}", where=shards, fix="shard more subjects, or choose another split")
    return dataset
