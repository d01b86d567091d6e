"""Where every sample of one shard lies: a JSON file beside it (train-000000.tar -> train-000000.index.json).

In: a tar.  Out: its ShardEntries.
A shard without an index is scanned once and indexed in memory, so that tars written by webdataset.TarWriter under the same member
names are read too.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from mri_ds.data.chunks import ReadAt
from mri_ds.data.codec import checksum
from mri_ds.data.manifest import FORMAT_VERSION, check_format_version
from mri_ds.data.members import FIX, IMAGE, META, SampleMeta, decode_meta, task_of
from mri_ds.data.tars import ClosedShard, Place, member_reader, open_tar, scan
from mri_ds.errors import CorruptError, InputError

MAX_META_BYTES = 2**20
MAX_INDEX_BYTES = 2**28
DELETE = "delete it; the shard is then scanned"

Count = Annotated[int, Field(ge=0, lt=2**53)]


class ShardEntry(BaseModel):
    """One sample: where its members are (name without key -> offset of the content and size, bytes) and what is known of it."""

    key: str
    subject_id: str
    shape: tuple[int, int, int, int]  # C D H W
    members: dict[str, tuple[Count, Count]]
    checksums: dict[str, int] = {}  # CRC-32 of each member; a scan does not know them
    values: dict[str, int | float] = {}
    site: str = ""
    patient: str = ""  # "": the only subject of its patient
    tasks: list[str] = []  # that this subject has a label for


def load_index(shard: Path) -> list[ShardEntry]:
    """The entries of one tar: from its index file, or by scanning it where there is none."""
    path = index_path(shard)
    if not path.is_file():
        return scan_shard(shard)
    if path.stat().st_size > MAX_INDEX_BYTES:
        raise InputError(f"is over {MAX_INDEX_BYTES} bytes", where=path, fix=DELETE)
    try:
        raw = json.loads(path.read_bytes())
        check_format_version(raw, where=path)
        entries = [ShardEntry.model_validate(entry) for entry in raw["samples"]]
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError):  # not JSON, not ours
        raise InputError("is not an index of a shard", where=path, fix=DELETE) from None
    size, end = shard.stat().st_size, max((sum(place) for entry in entries for place in entry.members.values()), default=0)
    if end > size or any(not {META, IMAGE} <= entry.members.keys() for entry in entries):
        raise InputError("does not match its shard", where=path, fix=DELETE)
    return entries


def write_index(shard: ClosedShard) -> Path:
    """Scans a tar that was just written and puts its index beside it, on the disk when this returns."""
    entries = scan_shard(shard.path)
    for entry in entries:
        entry.checksums = {name: shard.checksums[f"{entry.key}.{name}"] for name in entry.members}
    raw = {"format_version": FORMAT_VERSION, "samples": [entry.model_dump() for entry in entries]}
    path = index_path(shard.path)
    with path.open("w") as file:
        file.write(json.dumps(raw, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return path


def index_path(shard: Path) -> Path:
    return shard.with_name(shard.name.removesuffix(".tar") + ".index.json")


def scan_shard(shard: Path) -> list[ShardEntry]:
    """Reads the headers and the meta.json of every sample of a tar; no voxels. Raises InputError for a damaged tar."""
    places = scan(shard)
    if not places:
        raise InputError("holds no sample", where=shard, fix=FIX)
    with open_tar(shard) as read_at:
        return [_entry(read_meta(read_at, shard, key, members), key, members) for key, members in places.items()]


def read_meta(
    read_at: ReadAt, shard: Path, key: str, members: Mapping[str, Place], checksums: Mapping[str, int] = {}
) -> SampleMeta:
    """The meta.json of one sample of an open tar, held against its checksum where that is known."""
    for needed in (META, IMAGE):
        if needed not in members:
            raise InputError(f"sample {key} has no {needed}", where=shard, fix=FIX)
    size = members[META][1]
    if size > MAX_META_BYTES:
        raise InputError(f"{key}.{META} has {size} bytes", where=shard, fix=f"keep it under {MAX_META_BYTES}")
    data = member_reader(read_at, f"{key}.{META}", members[META], where=str(shard))(0, size)
    if META in checksums and checksum(data) != checksums[META]:
        raise CorruptError("fails its checksum", where=f"{shard}: {key}.{META}", fix=FIX)
    return decode_meta(data, where=f"{shard}: {key}")


def _entry(meta: SampleMeta, key: str, members: dict[str, Place]) -> ShardEntry:
    maps = [task for name in members if (task := task_of(name)) is not None]
    tasks = sorted([*maps, *meta.values])
    return ShardEntry(
        key=key,
        subject_id=meta.subject_id,
        shape=meta.shape,
        members=members,
        values=meta.values,
        site=meta.site,
        patient=meta.patient,
        tasks=tasks,
    )
