"""A dataset becomes shards: plain tars that `tar`, tarfile and webdataset read (format version 1, described in shards/README.md).

In: a Dataset (files).  Out: train-000000.tar ..., test-000000.tar ..., an index beside each, manifest.json.
Only the study's own pseudonym of a subject is stored: no path, no file name, no header text. The same data give the same bytes.
The bytes of one sample are made and read in `members.py`, found again in `index.py`.
"""

import functools
import io
import multiprocessing
import os
import shutil
import signal
import tarfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mri_ds.config import TaskConfig
from mri_ds.data.codec import decode_array
from mri_ds.data.images import source_bytes, source_sha256
from mri_ds.data.index import index_path, write_index
from mri_ds.data.layouts import Dataset, SubjectFiles, load_subject
from mri_ds.data.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    Manifest,
    Split,
    Summary,
    fingerprint,
    read_manifest,
    with_statistics,
    write_manifest,
)
from mri_ds.data.members import VOXELS, encode_sample, key_of
from mri_ds.data.parts import part_volumes_ml
from mri_ds.data.preprocess import to_canonical
from mri_ds.data.splits import assign_folds
from mri_ds.errors import InputError
from mri_ds.sample import Sample

__all__ = ["Manifest", "decoder", "read_manifest", "write_shards"]

MIN_SHARDS = 4  # per split, where there are as many subjects, so that several readers have one each
MAX_SHARD_BYTES = 256 * 2**20
BYTES_PER_WORKER = 32 * 2**20  # of source files that are worth starting one more process
STAGING = ".writing"
Progress = Callable[[int, int], None]


def write_shards(
    dataset: Dataset,
    out: Path,
    *,
    num_folds: int = 5,
    fold: int = 0,
    progress: Progress | None = None,
    skip_bad: bool = False,
    num_workers: int | None = None,
) -> Manifest:
    """Writes every subject into `out`: fold `fold` of `num_folds` as split "test", the others as "train".

    All files are written beside and moved into place at the end, manifest.json last. A subject that cannot be read raises its
    InputError, or with skip_bad is listed in `manifest.skipped`. Subjects are read by `num_workers` processes (None: as many
    as the amount of data pays for, one per core at most); the bytes written do not depend on it. progress(done, total) counts
    subjects. Raises InputError when a split would be empty.
    """
    splits = split_subjects(dataset, num_folds=num_folds, fold=fold)
    subjects = [subject for part in splits.values() for subject in part]
    workers = num_workers or _affordable_workers(subjects)
    with _staging(Path(out)) as folder, closing(_encode_all(subjects, dataset, workers, progress)) as results:
        written = {name: _write_split(folder, name, part, results, skip_bad) for name, part in splits.items()}
        _require_subjects({name: len(split.summaries) for name, split in written.items()}, num_folds)
        train = written["train"].summaries
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            layout=dataset.layout,
            channels=dataset.channels,
            tasks=with_statistics(dataset.tasks, train),
            num_folds=num_folds,
            fold=fold,
            splits={name: Split(shards=split.shards, num_samples=len(split.summaries)) for name, split in written.items()},
            fingerprint=fingerprint(train),
            skipped=[line for split in written.values() for line in split.skipped],
        )
        write_manifest(manifest, folder / MANIFEST)
        _publish(folder, Path(out))
    return manifest


def decoder(key: str, data: bytes) -> np.ndarray | None:
    """For `webdataset.WebDataset(urls).decode(decoder)`: volumes as arrays; webdataset itself decodes the meta.json."""
    return decode_array(data, where=key) if key.endswith(VOXELS) else None


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


# ---- one subject: files -> bytes (in a worker process) -------------------------------------------------------------


@dataclass(frozen=True)
class EncodedSubject:
    """One subject, ready to be appended to a tar."""

    key: str
    members: Mapping[str, bytes]
    summary: Summary


def encode_subject(files: SubjectFiles, tasks: dict[str, TaskConfig], num_channels: int) -> EncodedSubject | InputError:
    """Reads one subject, turns it to canonical orientation, encodes it. Bad input is returned, for the caller to judge."""
    try:
        sample = load_subject(files, tasks)
        if sample["image"].shape[0] != num_channels:
            what = f"{sample['image'].shape[0]} image channels, the dataset has {num_channels}"
            raise InputError(what, where=files.subject_id, fix="complete its images, or leave the subject out")
        sample = to_canonical(sample)
    except InputError as err:
        return err
    members = encode_sample(sample, source_sha256=[source_sha256(path) for path in files.images])
    return EncodedSubject(key_of(files.subject_id), members, _summarize(sample, tasks))


def _summarize(sample: Sample, tasks: dict[str, TaskConfig]) -> Summary:
    targets = sample["targets"]
    maps = {name for name, task in tasks.items() if task.kind == "segmentation"} & targets.keys()
    voxel_ml = float(abs(np.linalg.det(sample["affine"][:3, :3]))) / 1000
    return Summary(
        shape=sample["image"].shape[1:],
        spacing_mm=tuple(sample["spacing_mm"].tolist()),
        voxels_per_class={name: np.bincount(targets[name].ravel(), minlength=len(tasks[name].classes)) for name in maps},
        values={name: value for name, value in targets.items() if name not in maps},
        part_ml={name: part_volumes_ml(targets[name], len(tasks[name].classes), voxel_ml) for name in maps},
    )


def _encode_all(
    subjects: list[SubjectFiles], dataset: Dataset, num_workers: int, progress: Progress | None
) -> Generator[EncodedSubject | InputError]:
    """Results in the order of `subjects`, whatever finishes first; a few subjects at most are held in memory."""
    encode = functools.partial(encode_subject, tasks=dataset.tasks, num_channels=len(dataset.channels))
    results = map(encode, subjects) if num_workers == 1 else _in_processes(encode, subjects, num_workers)
    for done, result in enumerate(results, start=1):
        if progress:
            progress(done, len(subjects))
        yield result


def _in_processes(
    encode: Callable[[SubjectFiles], EncodedSubject | InputError], subjects: list[SubjectFiles], num_workers: int
) -> Iterator[EncodedSubject | InputError]:
    # spawn: a forked child would inherit the locks of torch's and gloo's threads
    with ProcessPoolExecutor(
        num_workers, mp_context=multiprocessing.get_context("spawn"), initializer=_leave_with_parent
    ) as pool:
        waiting: deque[Future[EncodedSubject | InputError]] = deque()
        try:
            for subject in subjects:
                waiting.append(pool.submit(encode, subject))
                if len(waiting) > 2 * num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise RuntimeError("a process that reads subjects was killed, most likely for want of memory") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _leave_with_parent() -> None:
    """In a worker: Ctrl-C is the parent's to handle, and a parent that is killed leaves no worker behind."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _affordable_workers(subjects: list[SubjectFiles]) -> int:
    num_bytes = sum(source_bytes(path) for subject in subjects for path in subject.images)
    return max(1, min(len(os.sched_getaffinity(0)), num_bytes // BYTES_PER_WORKER))


# ---- one split: bytes -> tars --------------------------------------------------------------------------------------


@dataclass
class WrittenSplit:
    """What has become of the subjects of one split."""

    shards: list[str] = field(default_factory=list)
    summaries: list[Summary] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def _write_split(
    folder: Path, name: str, subjects: list[SubjectFiles], results: Iterator[EncodedSubject | InputError], skip_bad: bool
) -> WrittenSplit:
    """Takes one result per subject. Starts a new shard at every quarter of the split and wherever one would grow too large."""
    split = WrittenSplit()
    starts = {int(block[0]) for block in np.array_split(np.arange(len(subjects)), min(MIN_SHARDS, len(subjects)))}
    with closing(ShardWriter(folder, name)) as writer:
        for i, (subject, result) in enumerate(zip(subjects, results)):
            if i in starts:
                writer.close()
            if isinstance(result, EncodedSubject):
                writer.add(result)
                split.summaries.append(result.summary)
            elif skip_bad:
                split.skipped.append(f"{subject.subject_id}: {_without_paths(str(result), subject)}")
            else:
                raise result
    split.shards = writer.names
    return split


class ShardWriter:
    """Appends subjects to PREFIX-000000.tar, PREFIX-000001.tar, ... in a folder; an index follows each when it is closed."""

    def __init__(self, folder: Path, prefix: str) -> None:
        self.folder, self.prefix = folder, prefix
        self.names: list[str] = []
        self._tar: tarfile.TarFile | None = None
        self._num_bytes = 0

    def add(self, subject: EncodedSubject) -> None:
        size = sum(len(data) for data in subject.members.values())
        if self._num_bytes + size > MAX_SHARD_BYTES:
            self.close()
        if self._tar is None:
            self.names.append(f"{self.prefix}-{len(self.names):06d}.tar")
            self._tar = tarfile.open(self.folder / self.names[-1], "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        for name, data in sorted(subject.members.items()):
            info = tarfile.TarInfo(f"{subject.key}.{name}")  # its time, owner and group are 0: nothing of this machine
            info.size = len(data)
            self._tar.addfile(info, io.BytesIO(data))
        self._num_bytes += size

    def close(self) -> None:
        """Ends the current shard; the next subject starts a new one."""
        if self._tar is not None:
            self._tar.close()
            self._tar, self._num_bytes = None, 0
            write_index(self.folder / self.names[-1])


def _without_paths(text: str, subject: SubjectFiles) -> str:
    for path in [*subject.images, *subject.labels.values()]:
        text = text.replace(str(path), "its file").replace(path.name, "its file")
    return text


def _require_subjects(counts: Mapping[str, int], num_folds: int) -> None:
    for name, count in counts.items():
        if not count:
            total = sum(counts.values())
            fix = "add subjects, or use fewer folds (`--folds 2`)" if num_folds > 2 else "add subjects"
            raise InputError(f"split {name!r} has no subject ({total} in all, {num_folds} folds)", fix=fix)


# ---- the folder ----------------------------------------------------------------------------------------------------


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """An empty folder inside `out`, on the same disk so that moving is atomic. Also clears what a killed call left."""
    folder = out / STAGING
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(staging: Path, out: Path) -> None:
    """Swaps the old shards for the new ones. Without its manifest, which comes last, a folder counts as empty."""
    _remove_old(out)
    for path in sorted(staging.iterdir(), key=lambda path: path.name == MANIFEST):
        os.replace(path, out / path.name)


def _remove_old(out: Path) -> None:
    """Removes the shards that an earlier call wrote here, and nothing else."""
    try:
        old = read_manifest(out)
    except InputError:
        return
    (out / MANIFEST).unlink()
    for name in (shard for split in old.splits.values() for shard in split.shards):
        (out / name).unlink()
        index_path(out / name).unlink(missing_ok=True)
