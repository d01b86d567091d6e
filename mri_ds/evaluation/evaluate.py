"""How good a run is on subjects that training never saw, beside a predictor that never looks.

Axes: D H W voxels of the native grid, K classes.
In: a Run and a folder of shards.  Out: plain dictionaries for JSON; what is not defined (no subject had the class) is None.

    {"tasks": {"tissue": {"kind": "segmentation", "dice_mean", "dice": {class: x}, "hd95_mm": {class: x},
                          "num_scored": {class: n}, "num_missed": {class: n}, "num_false_alarm": {class: n},
                          "num_empty": {class: n}, "constant": {"dice_mean", "dice": {class: x}}},
               "lesion": {"kind": "classification", "balanced_accuracy", "auc", "confusion": K rows by truth, "classes",
                          "num_scored", "constant": {"balanced_accuracy", "auc"}},
               "age": {"kind": "regression", "mae", "rmse", "r", "mae_constant", "unit", "num_scored",
                       "constant": {"mae", "rmse"}}},
     "subjects": [{"subject_id", task: {...}}], "num_subjects": n}

Means of dice and hd95_mm are over num_scored; how empty masks count is said in metrics/overlap.py and metrics/surface.py.
"""

from collections.abc import Callable
from pathlib import Path

from mri_ds.data.index import ShardDataset
from mri_ds.errors import InputError
from mri_ds.evaluation.figures import Figures, json_ready, score_subject, summarize
from mri_ds.inference.picture import draw_case
from mri_ds.inference.run import Run
from mri_ds.inference.subject import LabelMap, predict_sample

Progress = Callable[[int, int], None]


def evaluate(
    run: Run, shards: str | Path, *, split: str = "test", keep_small_parts: bool = False, progress: Progress | None = None
) -> Figures:
    """Predicts every subject of `split` on its native grid and scores it there. `progress` hears (done, total).

    Raises InputError when the shards lack one of the run's tasks, classes or channels, or have no subject in `split`.
    """
    dataset = open_split(run, shards, split)
    subjects: list[Figures] = []
    for i in range(len(dataset)):
        sample = dataset.read(i)
        figures: Figures = {"subject_id": sample["subject_id"]}
        for name, prediction in predict_sample(run, sample, keep_small_parts=keep_small_parts).items():
            if name in sample["targets"]:
                figures[name] = score_subject(prediction, sample["targets"][name], sample["spacing_mm"])
        subjects.append(figures)
        if progress is not None:
            progress(i + 1, len(dataset))
    tasks = {}
    for name, task in run.config.tasks.items():
        tasks[name] = summarize(task, dataset.manifest.tasks[name], [subject[name] for subject in subjects if name in subject])
    return json_ready({"tasks": tasks, "subjects": subjects, "num_subjects": len(subjects)})


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
