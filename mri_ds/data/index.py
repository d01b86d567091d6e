"""Where every sample lies in its tar: random access to shards without unpacking or scanning them.

In: a folder of shards, here or at a URL (remote.py).  Out: Samples, each read by byte range.
One JSON index per shard (train-000000.tar -> train-000000.index.json); a shard without one is scanned once and indexed in memory,
so that tars written by webdataset.TarWriter under the same member names are read too.
"""

import json
import os
import tarfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import BinaryIO

from pydantic import BaseModel

from mri_ds.config import TaskConfig, nearest
from mri_ds.data.manifest import FORMAT_VERSION, Manifest, check_format_version, read_manifest
from mri_ds.data.members import FIX, IMAGE, META, decode_meta, decode_sample, task_of
from mri_ds.data.remote import locate
from mri_ds.errors import InputError
from mri_ds.sample import Sample

MAX_MEMBER_BYTES = 4 * 2**30
MAX_META_BYTES = 2**20
BLOCK = tarfile.BLOCKSIZE  # a member's header is the block before its content


class ShardEntry(BaseModel):
    """One sample: where its members are (name without key -> offset of the content and size, bytes) and its scalar labels."""

    key: str
    subject_id: str
    members: dict[str, tuple[int, int]]
    values: dict[str, int | float] = {}
    tasks: list[str] = []  # that this subject has a label for


class ShardDataset:
    """The samples of one split, in the order of its shards. Holds no open file: safe to copy into worker processes.

    >>> dataset = ShardDataset(Path("shards"), "train")  # doctest: +SKIP
    >>> dataset.read(0)["image"].shape  # doctest: +SKIP
    (1, 36, 50, 35)
    """

    def __init__(self, folder: str | Path, split: str) -> None:
        """Raises InputError for a folder without shards, an unknown split, or shards that contradict their index."""
        self.folder = locate(folder)
        self.manifest: Manifest = read_manifest(self.folder)
        if split not in self.manifest.splits:
            raise InputError(f"no split {split!r}", where=self.folder, fix=nearest(split, list(self.manifest.splits)))
        self.split = split
        self._entries = [
            (self.folder / name, entry) for name in self.manifest.splits[split].shards for entry in load_index(self.folder / name)
        ]
        self._check_entries()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def tasks(self) -> dict[str, TaskConfig]:
        return self.manifest.tasks

    @property
    def subject_ids(self) -> list[str]:
        return [entry.subject_id for _, entry in self._entries]

    @property
    def shard_sizes(self) -> list[int]:
        """Number of samples in each shard, in order."""
        return list(Counter(shard for shard, _ in self._entries).values())

    def has_label(self, index: int, task: str) -> bool:
        """Whether sample `index` has a label for `task`; known from the index alone."""
        return task in self._entries[index][1].tasks

    def value(self, index: int, task: str) -> int | float | None:
        """Class index or regression target of sample `index`, or None; known from the index alone."""
        return self._entries[index][1].values.get(task)

    def read(self, index: int) -> Sample:
        """Sample `index`, decoded. Raises InputError where the tar is not what its index says."""
        shard, entry = self._entries[index]
        with shard.open("rb") as file:
            members = {
                name: read_member(file, f"{entry.key}.{name}", offset, size)
                for name, (offset, size) in entry.members.items()
                if name in (META, IMAGE) or task_of(name) in self.tasks
            }
        sample = decode_sample(members, where=f"{shard}: {entry.key}")
        sample["targets"] = {task: label for task, label in sample["targets"].items() if task in self.tasks}
        return sample

    def _check_entries(self) -> None:
        told = self.manifest.splits[self.split].num_samples
        if len(self) != told:
            raise InputError(
                f"split {self.split!r} holds {len(self)} samples, its manifest says {told}", where=self.folder, fix=FIX
            )
        seen: set[str] = set()
        for shard, entry in self._entries:
            if entry.subject_id in seen:
                raise InputError(f"subject {entry.subject_id!r} stands in split {self.split!r} twice", where=shard, fix=FIX)
            seen.add(entry.subject_id)


def load_index(shard: Path) -> list[ShardEntry]:
    """The entries of one tar: from its index file, or by scanning it where there is none."""
    path = index_path(shard)
    if not path.is_file():
        return scan_shard(shard)
    try:
        raw = json.loads(path.read_bytes())
        check_format_version(raw, where=path)
        entries = [ShardEntry.model_validate(entry) for entry in raw["samples"]]
    except (ValueError, KeyError, TypeError) as err:  # not JSON, not ours
        if isinstance(err, InputError):
            raise
        raise InputError("is not an index of a shard", where=path, fix="delete it; the shard is then scanned") from None
    size, end = shard.stat().st_size, max((offset + n for entry in entries for offset, n in entry.members.values()), default=0)
    if end > size or any(not {META, IMAGE} <= entry.members.keys() for entry in entries):
        raise InputError("does not match its shard", where=path, fix="delete it; the shard is then scanned")
    return entries


def write_index(shard: Path) -> None:
    """Scans a tar and writes its index beside it."""
    samples = [entry.model_dump() for entry in scan_shard(shard)]
    text = json.dumps({"format_version": FORMAT_VERSION, "samples": samples}, sort_keys=True)
    index_path(shard).write_text(text + "\n")


def index_path(shard: Path) -> Path:
    return shard.with_name(shard.name.removesuffix(".tar") + ".index.json")


def scan_shard(shard: Path) -> list[ShardEntry]:
    """Reads the headers and the meta.json of every sample of a tar; no voxels. Raises InputError for a damaged tar."""
    places: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
    try:
        with shard.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                folder, slash, file_name = info.name.rpartition("/")
                stem, dot, name = file_name.partition(".")
                key = folder + slash + stem
                if info.isreg() and dot:
                    if name in places[key]:
                        raise InputError(f"holds {info.name} twice", where=shard, fix=FIX)
                    places[key][name] = (info.offset_data, info.size)
        with shard.open("rb") as file:
            return [_entry(file, shard, key, members) for key, members in places.items()]
    except (tarfile.TarError, OSError) as err:
        raise InputError(f"is not a whole tar ({err})", where=shard, fix=FIX) from None


def read_member(file: BinaryIO, name: str, offset: int, size: int) -> bytes:
    """Content of one member of an open tar, after holding the header before it against name and size."""
    try:
        if offset < BLOCK or not 0 <= size <= MAX_MEMBER_BYTES or offset + size > file.seek(0, os.SEEK_END):
            raise tarfile.HeaderError
        file.seek(offset - BLOCK)
        header = tarfile.TarInfo.frombuf(file.read(BLOCK), "utf-8", "surrogateescape")
        is_same = header.size == size and (header.name == name or (len(name) > 99 and name.startswith(header.name)))
        if not is_same:  # a name of 100 bytes or more stands in full in the pax header before this one
            raise tarfile.HeaderError
    except tarfile.HeaderError:
        fix = "delete its index file, or shard the data again"
        raise InputError(f"holds no {name} of {size} bytes at byte {offset}", where=file.name, fix=fix) from None
    return file.read(size)


def _entry(file: BinaryIO, shard: Path, key: str, members: dict[str, tuple[int, int]]) -> ShardEntry:
    for needed in (META, IMAGE):
        if needed not in members:
            raise InputError(f"sample {key} has no {needed}", where=shard, fix=FIX)
    offset, size = members[META]
    if size > MAX_META_BYTES:
        raise InputError(f"{key}.{META} has {size} bytes", where=shard, fix=f"keep it under {MAX_META_BYTES}")
    meta = decode_meta(read_member(file, f"{key}.{META}", offset, size), where=f"{shard}: {key}")
    maps = [task for name in members if (task := task_of(name)) is not None]
    tasks = sorted([*maps, *meta.values])
    return ShardEntry(key=key, subject_id=meta.subject_id, members=members, values=meta.values, tasks=tasks)
