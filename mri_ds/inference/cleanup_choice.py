"""Of which classes the largest connected part alone is kept: chosen by Dice on validation subjects, never on those of a report.

Axes: D H W voxels of the native grid.
In: a run and shards with a validation split.  Out: RUN/cleanup.json (its form is in cleanup.py). A class is chosen where its mean
Dice over the subjects that have it rises; each on its own. Source: Isensee et al. 2021 (nnU-Net), "postprocessing".
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mri_ds.data.index import ShardDataset
from mri_ds.errors import InputError
from mri_ds.inference.cleanup import FILE, but_the_largest
from mri_ds.inference.outputs import write_json
from mri_ds.inference.run import load_run
from mri_ds.inference.subject import LabelMap, predict_sample
from mri_ds.metrics.overlap import dice

VALIDATION = ("val", "validation")


def choose_cleanup(
    run_dir: Path, shards: Path, *, split: str | None = None, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Writes RUN/cleanup.json and returns its content: `dice` has each class's mean before and after.

    split: by default the shards' validation split. Raises InputError for the training split, and where there is no other.
    """
    run = replace(load_run(run_dir), keep_largest={})
    dataset = _open(shards, split)
    scores: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for number in range(len(dataset)):
        sample = dataset.read(number)
        for task, found in predict_sample(run, sample).items():
            if isinstance(found, LabelMap) and task in sample["targets"]:
                _score(scores.setdefault(task, {}), found, sample["targets"][task])
        if progress is not None:
            progress(number + 1, len(dataset))
    means = {task: {name: np.mean(rows, axis=0).tolist() for name, rows in own.items()} for task, own in scores.items()}
    chosen = {task: [name for name, (before, after) in own.items() if after > before] for task, own in means.items()}
    content = {
        "split": dataset.split,
        "subjects": len(dataset),
        "keep_largest": {k: v for k, v in chosen.items() if v},
        "dice": means,
    }
    write_json(run_dir / FILE, content)
    return content


def _score(scores: dict[str, list[tuple[float, float]]], found: LabelMap, truth: np.ndarray) -> None:
    """Dice of each class that the subject has, as predicted and with its largest part alone."""
    for k, name in enumerate(found.classes):
        mask = found.labels == k
        if k and (truth == k).any():
            kept = mask & ~but_the_largest(mask)
            scores.setdefault(name, []).append((dice(truth == k, mask), dice(truth == k, kept)))


def _open(shards: Path, split: str | None) -> ShardDataset:
    splits = ShardDataset(shards, split or "train").manifest.splits
    name = split or next((known for known in VALIDATION if known in splits), None)
    if name is None:
        fix = "give --split with one that no figure is reported on"
        raise InputError(f"has no validation split (found: {', '.join(splits)})", where=shards, fix=fix)
    dataset = ShardDataset(shards, name)
    if name == "train" or not len(dataset):
        what = "the network has seen the training subjects" if name == "train" else f"no subject in split {name!r}"
        raise InputError(what, where=shards, fix="choose on held-out subjects")
    return dataset
