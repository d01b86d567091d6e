"""A dataset becomes shards: plain tars that `tar`, tarfile and webdataset read (format version 2, described in shards/README.md).

In: a Dataset (files).  Out: train-000000.tar ..., test-000000.tar ..., an index beside each, manifest.json.
Only the study's own pseudonym of a subject is stored: no path, no file name, no header text. The same data give the same bytes,
whatever the number of processes, and whether or not the call was killed on the way and made again.
This is the door to the format. Behind it, from small to large: `codec` a block of voxels, `chunks` an array, `members` a sample,
`tars` a shard, `entries` its index, `packing` a split to write, `index` a split to read, `staging` the folder meanwhile.
"""

import functools
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from mri_ds.config import TaskConfig
from mri_ds.data.chunks import decode_array
from mri_ds.data.fingerprint import Summary, fingerprint, sketch
from mri_ds.data.images import source_bytes, source_sha256
from mri_ds.data.index import ShardDataset
from mri_ds.data.intensity import body
from mri_ds.data.layouts import Dataset, SubjectFiles, load_subject
from mri_ds.data.manifest import FORMAT_VERSION, MANIFEST, Manifest, Split, read_manifest, with_statistics, write_manifest
from mri_ds.data.members import PLACES, VOXELS, encode_sample, key_of
from mri_ds.data.packing import EncodedSubject, ShardWriter, num_done, pack, recipe_of
from mri_ds.data.parts import part_volumes_ml
from mri_ds.data.preprocess import to_canonical
from mri_ds.data.processes import in_order, num_cores
from mri_ds.data.splits import assign_folds
from mri_ds.data.staging import Finished, Journal, publish, staging
from mri_ds.errors import InputError
from mri_ds.sample import Sample

__all__ = ["EncodedSubject", "Manifest", "ShardDataset", "ShardWriter", "decoder", "read_manifest", "write_shards"]

BYTES_PER_WORKER = 32 * 2**20  # of source files that are worth starting one more process
Progress = Callable[[int, int], None]


def write_shards(
    dataset: Dataset,
    out: Path,
    *,
    num_folds: int = 5,
    fold: int = 0,
    progress: Progress | None = None,
    strict: bool = False,
    num_workers: int | None = None,
) -> Manifest:
    """Writes every subject into `out`: fold `fold` of `num_folds` as split "test", the others as "train".

    All files are written beside and moved into place at the end, manifest.json last; a call that was killed goes on where it
    was. A subject that cannot be read is listed in `manifest.skipped`, or with `strict` raises its InputError. Subjects are read
    by `num_workers` processes (None: as many as the amount of data pays for, one per core at most); the bytes written do not
    depend on it. progress(done, total) counts subjects. Raises InputError when a split would be empty, and on a full disk.
    """
    splits = {name: _pseudonymous(part) for name, part in split_subjects(dataset, num_folds=num_folds, fold=fold).items()}
    with staging(Path(out)) as folder:
        journal = Journal(folder)
        recipes = {name: recipe_of(dataset, part) for name, part in splits.items()}
        finished = journal.take_over(recipes)
        to_do = [subject for name, part in splits.items() for subject in part[num_done(finished[name]) :]]
        report = _counter(progress, sum(map(len, splits.values())) - len(to_do), len(to_do))
        with closing(_encode_all(to_do, dataset, num_workers or _affordable_workers(to_do), report)) as results:
            for name, part in splits.items():
                for line in pack(folder, name, part, finished[name], results, recipe=recipes[name], strict=strict):
                    journal.append(line)
                    finished[name].append(line)
        manifest = _manifest(dataset, finished, num_folds=num_folds, fold=fold)
        write_manifest(manifest, folder / MANIFEST)
        publish(folder, Path(out))
    return manifest


def decoder(key: str, data: bytes) -> np.ndarray | None:
    """For `webdataset.WebDataset(urls).decode(decoder)`: volumes as arrays; webdataset itself decodes the meta.json."""
    return decode_array(data, where=key) if key.endswith((VOXELS, PLACES)) else None


def split_subjects(dataset: Dataset, *, num_folds: int, fold: int) -> dict[str, list[SubjectFiles]]:
    """{"train": ..., "test": ...}, each sorted by subject id; stratified by the first classification task, if there is one.

    All subjects (sessions, runs) of a patient are in one split.
    """
    if num_folds < 2 or not 0 <= fold < num_folds:
        raise InputError(f"fold {fold} of {num_folds}", fix="choose at least 2 folds, and a fold from 0 to one less")
    subjects = sorted(dataset.subjects, key=lambda subject: subject.subject_id)
    stratum = next((name for name, task in dataset.tasks.items() if task.kind == "classification"), None)
    patients = {subject.patient_id: subject for subject in reversed(subjects)}  # with the first subject of each
    strata = [str(subject.values.get(stratum, "")) for subject in patients.values()] if stratum else None  # "": no label
    folds = assign_folds(list(patients), num_folds=num_folds, strata=strata)
    test = [subject for subject in subjects if folds[subject.patient_id] == fold]
    train = [subject for subject in subjects if folds[subject.patient_id] != fold]
    _require_subjects({"train": len(train), "test": len(test)}, num_folds)
    return {"train": train, "test": test}


def _pseudonymous(subjects: list[SubjectFiles]) -> list[SubjectFiles]:
    """Patients of several subjects called after their first: what a table calls them may say who they are."""
    first: dict[str, str] = {}
    for subject in subjects:
        first.setdefault(subject.patient_id, subject.subject_id)
    num = Counter(subject.patient_id for subject in subjects)
    return [replace(s, patient=first[s.patient_id] if num[s.patient_id] > 1 else "") for s in subjects]


# ---- one subject: files -> bytes (in a worker process) -------------------------------------------------------------


def encode_subject(files: SubjectFiles, tasks: dict[str, TaskConfig], num_channels: int) -> EncodedSubject | InputError:
    """Reads one subject, turns it to canonical orientation, encodes it. Bad input is returned, for the caller to judge."""
    try:
        notes: list[str] = []
        loaded = load_subject(files, tasks, notes)
        if loaded["image"].shape[0] != num_channels:
            what = f"{loaded['image'].shape[0]} image channels (time points count), the dataset has {num_channels}"
            raise InputError(what, where=files.subject_id, fix="complete its images, or leave the subject out")
        sample = to_canonical(loaded)
        if "acquisition" in loaded:
            sample["acquisition"] = loaded["acquisition"]
        digests = [source_sha256(path) for path in files.images]
        members = encode_sample(sample, source_sha256=digests, site=files.site, strata=files.strata, patient=files.patient)
    except InputError as err:
        return err
    except OSError as err:  # a file that went while it was read
        return InputError(f"cannot be read ({err.strerror})", where=files.subject_id, fix="put its files back")
    return EncodedSubject(key_of(files.subject_id), members, summarize_subject(sample, tasks), notes)


def summarize_subject(sample: Sample, tasks: dict[str, TaskConfig]) -> Summary:
    """What the manifest's statistics need to know of one canonical sample, read from files or from a shard: the same digits."""
    targets = sample["targets"]
    maps = {name for name, task in tasks.items() if task.kind == "segmentation"} & targets.keys()
    voxel_ml = float(abs(np.linalg.det(sample["affine"][:3, :3]))) / 1000
    return Summary(
        shape=sample["image"].shape[1:],
        spacing_mm=tuple(sample["spacing_mm"].tolist()),
        voxels_per_class={
            name: np.bincount(targets[name].ravel(), minlength=len(tasks[name].classes)).tolist() for name in sorted(maps)
        },
        values={name: value for name, value in targets.items() if name not in maps},
        foreground=[sketch(voxels) for voxels in _foreground(sample, tasks) if len(voxels)],
        part_ml={name: _parts_of(targets[name], len(tasks[name].classes), voxel_ml) for name in sorted(maps)},
    )


def _parts_of(label: np.ndarray, num_classes: int, voxel_ml: float) -> list[list[float]]:
    return [volumes.tolist() for volumes in part_volumes_ml(label, num_classes, voxel_ml)]


def _foreground(sample: Sample, tasks: dict[str, TaskConfig]) -> list[np.ndarray]:
    """Of each channel the voxels that have a class but 0; where no task is a segmentation, those that are not background."""
    first = next((name for name, task in tasks.items() if task.kind == "segmentation"), None)
    if first is None:
        return [body(channel) for channel in sample["image"]]
    label = sample["targets"].get(first)
    return [] if label is None else [channel[label > 0] for channel in sample["image"]]


def _encode_all(
    subjects: list[SubjectFiles], dataset: Dataset, num_workers: int, report: Callable[[], None]
) -> Generator[EncodedSubject | InputError]:
    """Results in the order of `subjects`, whatever finishes first; a few subjects at most are held in memory."""
    encode = functools.partial(encode_subject, tasks=dataset.tasks, num_channels=len(dataset.channels))
    for result in in_order(encode, subjects, num_workers):
        report()
        yield result


def _affordable_workers(subjects: list[SubjectFiles]) -> int:
    num_bytes = sum(source_bytes(path) for subject in subjects for path in subject.images)
    return max(1, min(num_cores(), num_bytes // BYTES_PER_WORKER))


def _counter(progress: Progress | None, done: int, to_do: int) -> Callable[[], None]:
    """Tells `progress` of the subjects that an earlier call has done, then of one more at each call."""
    total = done + to_do

    def report() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    if progress and done:
        progress(done, total)
    return report


# ---- all splits ----------------------------------------------------------------------------------------------------


def _manifest(dataset: Dataset, finished: Mapping[str, Sequence[Finished]], *, num_folds: int, fold: int) -> Manifest:
    summaries = {name: [summary for line in lines for summary in line.summaries] for name, lines in finished.items()}
    _require_subjects({name: len(part) for name, part in summaries.items()}, num_folds)
    return Manifest(
        format_version=FORMAT_VERSION,
        layout=dataset.layout,
        channels=dataset.channels,
        tasks=with_statistics(dataset.tasks, summaries["train"]),
        num_folds=num_folds,
        fold=fold,
        splits={
            name: Split(
                shards=[line.name for line in lines],
                num_samples=len(summaries[name]),
                sha256={line.name: line.sha256 for line in lines},
            )
            for name, lines in finished.items()
        },
        fingerprint=fingerprint(summaries["train"]),
        skipped=[text for lines in finished.values() for line in lines for text in line.skipped],
        notes=[text for lines in finished.values() for line in lines for text in line.notes],
    )


def _require_subjects(counts: Mapping[str, int], num_folds: int) -> None:
    for name, count in counts.items():
        if not count:
            total = sum(counts.values())
            fix = "add subjects, or use fewer folds (`--folds 2`)" if num_folds > 2 else "add subjects"
            raise InputError(f"split {name!r} has no subject ({total} in all, {num_folds} folds)", fix=fix)
