"""The subjects of one split go into shards: where one ends, what the journal says of it, and what its bytes depend on.

In: encoded subjects, or the reasons why there are none, in order.  Out: tars of some 256 MB with their indexes.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from mri_ds import __version__
from mri_ds.data.codec import LEAST_SAVED, LEVEL
from mri_ds.data.entries import write_index
from mri_ds.data.fingerprint import Summary
from mri_ds.data.inside_tar import TAR
from mri_ds.data.layouts import Dataset, SubjectFiles
from mri_ds.data.manifest import FORMAT_VERSION
from mri_ds.data.staging import Finished, Recipe
from mri_ds.data.tars import MAX_SHARD_BYTES, TarWriter, file_sha256
from mri_ds.errors import InputError

MIN_SHARDS = 4  # per split, where there are as many subjects, so that several readers have one each


@dataclass(frozen=True)
class EncodedSubject:
    """One subject, ready to be appended to a tar."""

    key: str
    members: Mapping[str, bytes]
    summary: Summary
    notes: Sequence[str] = ()  # what a person should know about its files


def pack(
    folder: Path,
    split: str,
    subjects: list[SubjectFiles],
    finished: Sequence[Finished],
    results: Iterator[EncodedSubject | InputError],
    *,
    recipe: Recipe,
    strict: bool,
) -> Iterator[Finished]:
    """Yields each shard once it is whole, going on behind those that are finished.

    A new one starts at every quarter of the split and wherever one would grow too large. Skipped subjects count to the shard
    that is open when they come, or that is opened next.
    """
    starts = np.array([block[0] for block in np.array_split(np.arange(len(subjects)), min(MIN_SHARDS, len(subjects)))])
    first, writer = num_done(finished), ShardWriter(folder, split, len(finished))
    opened_at, summaries, skipped, notes = first, list[Summary](), list[str](), list[str]()

    def close(last: int) -> Finished:
        return Finished(
            split=split,
            **writer.close(),
            recipe=recipe(first, last),
            num_subjects=last - first,
            summaries=summaries,
            skipped=skipped,
            notes=notes,
        )

    try:
        for i, result in zip(range(first, len(subjects)), results):
            if isinstance(result, InputError):
                if strict:
                    raise result
                skipped.append(f"{subjects[i].subject_id}: {_without_paths(str(result), subjects[i])}")
                continue
            if summaries and (((starts > opened_at) & (starts <= i)).any() or not writer.has_room(result)):
                yield close(i)
                first, summaries, skipped, notes = i, [], [], []
            if not summaries:
                opened_at = i
            writer.add(result)
            summaries.append(result.summary)
            notes += [f"{subjects[i].subject_id}: {_without_paths(note, subjects[i])}" for note in result.notes]
        if summaries:
            yield close(len(subjects))
    finally:
        writer.discard()


class ShardWriter:
    """Appends subjects to PREFIX-000000.tar, PREFIX-000001.tar, ... in a folder; an index follows each when it is closed."""

    def __init__(self, folder: Path, prefix: str, number: int = 0) -> None:
        self.folder, self.prefix, self.number = folder, prefix, number
        self.names: list[str] = []
        self._tar: TarWriter | None = None

    def has_room(self, subject: EncodedSubject) -> bool:
        """Whether the current shard may take this subject; an empty one takes any."""
        size = sum(len(data) for data in subject.members.values())
        return self._tar is None or self._tar.num_bytes + size <= MAX_SHARD_BYTES

    def add(self, subject: EncodedSubject) -> None:
        if self._tar is None:
            self.names.append(f"{self.prefix}-{self.number:06d}.tar")
            self.number += 1
            self._tar = TarWriter(self.folder / self.names[-1])
        self._tar.add(subject)

    def close(self) -> dict[str, str]:
        """Ends the current shard, if there is one; the next subject starts a new one. Its name and the digests of its files."""
        if self._tar is None:
            return {}
        shard, self._tar = self._tar.close(), None
        index = write_index(shard)
        return {"name": shard.path.name, "sha256": shard.sha256, "index_sha256": file_sha256(index)}

    def discard(self) -> None:
        """Removes the current shard."""
        if self._tar is not None:
            self._tar.discard()
            self._tar = None


def recipe_of(dataset: Dataset, subjects: list[SubjectFiles]) -> Recipe:
    """What a shard's bytes depend on: versions, tasks, the names in its split, its subjects' files, and the next subject's,
    whose size may have ended it. Files are told apart by path, size and time of change, as `make` does."""
    names = [subject.subject_id for subject in subjects]
    plan = [FORMAT_VERSION, LEVEL, LEAST_SAVED, MAX_SHARD_BYTES, MIN_SHARDS, names]
    plan += [__version__, zstandard.__version__, np.__version__]
    plan += [dataset.channels, {name: task.model_dump() for name, task in dataset.tasks.items()}]

    def recipe(first: int, last: int) -> str:
        used = [_fingerprint_of_files(subject) for subject in subjects[first : last + 1]]
        return hashlib.sha256(json.dumps([plan, used], sort_keys=True).encode()).hexdigest()

    return recipe


def _fingerprint_of_files(subject: SubjectFiles) -> list[Any]:
    paths = [*subject.images, *(subject.labels[task] for task in sorted(subject.labels))]
    inside = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    states = [(str(file), stat.st_size, stat.st_mtime_ns) if (stat := _stat(file)) else (str(file),) for file in inside]
    states += [
        (str(tar), stat.st_size, stat.st_mtime_ns)
        for tar in sorted({parent for path in paths for parent in path.parents if parent.suffix.lower() == TAR})
        if (stat := _stat(tar))
    ]
    told = [subject.values, subject.series, subject.site, subject.strata, subject.patient]
    return [subject.subject_id, states, sorted(subject.labels), *told]


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def num_done(finished: Sequence[Finished]) -> int:
    return sum(line.num_subjects for line in finished)


def _without_paths(text: str, subject: SubjectFiles) -> str:
    """A reason without the names of files and folders, in which patients are named."""
    paths = [*subject.images, *subject.labels.values()]
    for path in paths:
        text = text.replace(str(path), "its file").replace(path.name, "its file")
    for folder in sorted({str(folder) for path in paths for folder in path.parents} - {"/", "."}, key=len, reverse=True):
        text = text.replace(folder, "its folder")
    return text
