"""K folds of one folder of shards: each a folder of shards itself, in which no voxel is written again.

In: a folder of shards on this disk.  Out: per fold a folder of links to its tars, with indexes that list some of their samples,
and a manifest whose statistics come from that fold's training subjects alone.
What was sharded as train, test or anything else is dealt out anew. What reads shards reads a fold, and knows of no folds.
"""

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from mri_ds.config import TaskConfig
from mri_ds.data.entries import ShardEntry, index_path, load_index
from mri_ds.data.fingerprint import Summary, fingerprint
from mri_ds.data.index import ShardDataset
from mri_ds.data.manifest import FORMAT_VERSION, MANIFEST, Manifest, Split, read_manifest, with_statistics, write_manifest
from mri_ds.data.processes import in_order, num_cores
from mri_ds.data.shards import summarize_subject
from mri_ds.data.splits import assign_folds
from mri_ds.errors import InputError

GROUPS = 4  # a continuous target is stratified by its quartiles
SUBJECTS_PER_WORKER = 200  # worth starting one more process
SUMMARIES = TypeAdapter(dict[str, Summary])
Progress = Callable[[int, int], None]


def deal(shards: Path, *, num_folds: int, seed: int, summaries: Mapping[str, Summary]) -> dict[str, int]:
    """{subject: fold}: all subjects of a patient in one fold, strata even over the folds, the same for the same seed.

    Strata are the classes of the first classification task; without one, quartiles of the first regression task; without either,
    quartiles of the labelled volume of the first segmentation task. A patient counts as its first subject does.
    Raises InputError for fewer patients than folds, and for a subject that stands in two splits.
    """
    patients: dict[str, list[str]] = {}
    for dataset in _splits(shards):
        for i, subject in enumerate(dataset.subject_ids):
            patients.setdefault(dataset.patient(i), []).append(subject)
    subjects = [subject for group in patients.values() for subject in group]
    if len(set(subjects)) < len(subjects):
        raise InputError("a subject stands in two splits", where=shards, fix="shard the data again")
    if not 2 <= num_folds <= len(patients):
        raise InputError(
            f"{num_folds} folds of {len(patients)} patients", where=shards, fix="choose at least 2, and at most that many"
        )
    names = sorted(patients)
    strata = _strata([summaries[min(patients[name])] for name in names], read_manifest(shards).tasks)
    fold_of = assign_folds(names, num_folds=num_folds, strata=strata, seed=seed)
    return {subject: fold_of[name] for name in names for subject in sorted(patients[name])}


def write_fold(shards: Path, out: Path, fold_of: Mapping[str, int], fold: int, summaries: Mapping[str, Summary]) -> Manifest:
    """The folder of shards in which `fold` is split "test" and all other folds are "train". Overwrites one that is there."""
    source = read_manifest(shards)
    shutil.rmtree(out, ignore_errors=True)  # links: no data goes with them
    out.mkdir(parents=True)
    splits = {name: Split(shards=[], num_samples=0) for name in ("train", "test")}
    for told in source.splits.values():
        for shard in told.shards:
            entries = load_index(shards / shard)
            for name, split in splits.items():
                chosen = [entry for entry in entries if (fold_of[entry.subject_id] == fold) == (name == "test")]
                if chosen:
                    link = _link(out, f"{name}-{len(split.shards):06d}.tar", shards / shard, chosen)
                    split.shards.append(link)
                    split.num_samples += len(chosen)
                    split.sha256 |= {link: told.sha256[shard]} if shard in told.sha256 else {}
    training = [summaries[subject] for subject in sorted(fold_of) if fold_of[subject] != fold]
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        layout=source.layout,
        channels=source.channels,
        tasks=with_statistics(_without_statistics(source.tasks), training),
        num_folds=max(fold_of.values()) + 1,
        fold=fold,
        splits=splits,
        fingerprint=fingerprint(training),
        skipped=source.skipped,
        notes=source.notes,
    )
    write_manifest(manifest, out / MANIFEST)  # last, as ever: a folder without it is none
    return manifest


def summarize_all(shards: Path, *, kept: Path | None = None, progress: Progress | None = None) -> dict[str, Summary]:
    """{subject: its Summary} of every split; every voxel is read once; the file `kept` keeps it for the next call."""
    digest = hashlib.sha256((shards / MANIFEST).read_bytes()).hexdigest()
    if kept is not None and kept.is_file():
        raw = json.loads(kept.read_bytes())
        if raw["manifest"] == digest:
            return SUMMARIES.validate_python(raw["summaries"])
    work = [(shards, dataset.split, i) for dataset in _splits(shards) for i in range(len(dataset))]
    workers = max(1, min(num_cores(), len(work) // SUBJECTS_PER_WORKER))
    summaries: dict[str, Summary] = {}
    for subject, summary in in_order(_summary, work, workers):
        summaries[subject] = summary
        if progress is not None:
            progress(len(summaries), len(work))
    if kept is not None:
        partial = kept.with_name(f".{kept.name}")
        partial.write_text(json.dumps({"manifest": digest, "summaries": SUMMARIES.dump_python(summaries, mode="json")}))
        os.replace(partial, kept)
    return summaries


def _summary(place: tuple[Path, str, int]) -> tuple[str, Summary]:
    folder, split, index = place
    dataset = _opened(folder, split)
    sample = dataset.read(index)
    return sample["subject_id"], summarize_subject(sample, dataset.tasks)


@functools.lru_cache(maxsize=8)
def _opened(folder: Path, split: str) -> ShardDataset:
    return ShardDataset(folder, split)


def _splits(shards: Path) -> list[ShardDataset]:
    return [ShardDataset(shards, name) for name, split in read_manifest(shards).splits.items() if split.num_samples]


def _strata(summaries: Sequence[Summary], tasks: Mapping[str, TaskConfig]) -> list[str]:
    first = {kind: next((n for n, t in tasks.items() if t.kind == kind), "") for kind in ("classification", "regression")}
    if first["classification"]:
        return [str(s.values.get(first["classification"], "")) for s in summaries]
    if first["regression"]:
        return _quartiles([float(s.values.get(first["regression"], np.nan)) for s in summaries])
    name = next(iter(tasks), "")
    return _quartiles([_labelled_ml(s, name) for s in summaries])


def _labelled_ml(summary: Summary, task: str) -> float:
    counts = summary.voxels_per_class.get(task)
    return sum(counts[1:]) * float(np.prod(summary.spacing_mm)) / 1000 if counts else np.nan


def _quartiles(values: Sequence[float]) -> list[str]:
    """The quarter of the known values that each lies in; "" where it is unknown."""
    known = [v for v in values if np.isfinite(v)]
    edges = np.quantile(known, np.arange(1, GROUPS) / GROUPS) if known else np.zeros(0)
    return [str(int(np.searchsorted(edges, v))) if np.isfinite(v) else "" for v in values]


def _without_statistics(tasks: Mapping[str, TaskConfig]) -> dict[str, TaskConfig]:
    """What a person said of the tasks: the numbers that the shards' own split gave them would tell of held-out subjects."""
    return {name: TaskConfig(kind=task.kind, classes=task.classes, unit=task.unit) for name, task in tasks.items()}


def _link(out: Path, name: str, shard: Path, entries: Sequence[ShardEntry]) -> str:
    (out / name).symlink_to(shard.resolve())
    raw = {"format_version": FORMAT_VERSION, "samples": [entry.model_dump() for entry in entries]}
    index_path(out / name).write_text(json.dumps(raw, sort_keys=True) + "\n")
    return name
