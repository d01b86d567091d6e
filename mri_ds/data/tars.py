"""One tar of a shard folder: written member by member, scanned, and read by byte range.

In: samples as named bytes.  Out: a plain POSIX tar; back, where each member lies and what it holds.
Nothing is ever unpacked, so no path inside a tar can lead anywhere.
"""

import hashlib
import io
import os
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from mri_ds.data import buffers
from mri_ds.data.chunks import ReadAt
from mri_ds.data.codec import checksum
from mri_ds.data.members import FIX
from mri_ds.errors import InputError

MAX_MEMBER_BYTES = 4 * 2**30
MAX_SHARD_BYTES = 256 * 2**20
BLOCK = tarfile.BLOCKSIZE  # a member's header is the block before its content
PARTIAL = ".part"

Place = tuple[int, int]  # offset of the content in the tar, size


class Encoded(Protocol):
    """A sample, ready to be appended."""

    @property
    def key(self) -> str: ...
    @property
    def members(self) -> Mapping[str, bytes]: ...


@dataclass
class ClosedShard:
    """A tar that is whole and on disk. `checksums` holds the CRC-32 of each member by its full name."""

    path: Path
    sha256: str
    checksums: dict[str, int] = field(default_factory=dict)


class TarWriter:
    """Appends samples to NAME.part; `close` makes it NAME once every byte is on the disk."""

    def __init__(self, path: Path) -> None:
        self.path, self.checksums, self.num_bytes = path, dict[str, int](), 0
        self._file = path.with_name(path.name + PARTIAL).open("wb")
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115

    def add(self, sample: Encoded) -> None:
        for name, data in sorted(sample.members.items()):
            info = tarfile.TarInfo(f"{sample.key}.{name}")  # its time, owner and group are 0: nothing of this machine
            info.size = len(data)
            self._tar.addfile(info, io.BytesIO(data))
            self.checksums[info.name] = checksum(data)
            self.num_bytes += len(data)

    def close(self) -> ClosedShard:
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._file.name, self.path)
        return ClosedShard(self.path, file_sha256(self.path), self.checksums)

    def discard(self) -> None:
        """Leaves nothing behind, not even on a full disk."""
        with suppress(OSError):  # what was still in its buffer may find no room
            self._file.close()
        Path(self._file.name).unlink(missing_ok=True)


def scan(shard: Path) -> dict[str, dict[str, Place]]:
    """{key: {member name after the key: its place}}, from the headers alone. Raises InputError for a damaged tar."""
    places: dict[str, dict[str, Place]] = defaultdict(dict)
    try:
        with shard.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                folder, slash, file_name = info.name.rpartition("/")
                stem, dot, name = file_name.partition(".")
                if not (info.isreg() and dot):
                    continue
                if info.name.startswith("/") or ".." in folder.split("/"):
                    raise InputError(f"holds the path {info.name!r}, which leads outside", where=shard, fix=FIX)
                members = places[folder + slash + stem]
                if name in members:
                    raise InputError(f"holds {info.name} twice", where=shard, fix=FIX)
                members[name] = (info.offset_data, info.size)
    except InputError:
        raise
    except (tarfile.TarError, OSError, ValueError, OverflowError) as err:
        raise InputError(f"is not a whole tar ({err})", where=shard, fix=FIX) from None
    return dict(places)


@contextmanager
def open_tar(shard: Path) -> Iterator[ReadAt]:
    """Yields read_at(offset, size) for the whole tar. Raises InputError where it has gone."""
    try:
        file = shard.open("rb")
    except OSError as err:
        raise InputError(f"cannot be read ({err.strerror})", where=shard, fix="put it back, or shard the data again") from None
    with file:
        yield _reader(file, shard)


def member_reader(read_at: ReadAt, name: str, place: Place, *, where: str) -> ReadAt:
    """read_at for one member, counted from its first byte, after holding the header before it against name and size."""
    offset, size = place
    try:
        if offset < BLOCK or not 0 <= size <= MAX_MEMBER_BYTES:
            raise tarfile.HeaderError
        header = tarfile.TarInfo.frombuf(bytes(read_at(offset - BLOCK, BLOCK)), "utf-8", "surrogateescape")
        is_same = header.size == size and (header.name == name or (len(name) > 99 and name.startswith(header.name)))
        if not is_same:  # a name of 100 bytes or more stands in full in the pax header before this one
            raise tarfile.HeaderError
    except InputError:  # it could not be read at all, which is another matter
        raise
    except (tarfile.HeaderError, ValueError):
        fix = "delete its index file, or shard the data again"
        raise InputError(f"holds no {name} of {size} bytes at byte {offset}", where=where, fix=fix) from None
    return lambda begin, count: read_at(offset + begin, max(0, min(count, size - begin)))


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reader(file: BinaryIO, shard: Path) -> ReadAt:
    """Straight from the file system where the file lies on one, without buffers: nothing is read that was not asked for."""
    try:
        descriptor = file.fileno()
    except OSError:  # it lies elsewhere
        descriptor = -1

    def read_at(offset: int, size: int) -> bytes:
        try:
            if descriptor >= 0:
                return _pread(descriptor, offset, size)
            file.seek(offset)
            return file.read(size)
        except OSError as err:
            fix = "check the disk or the connection"
            raise InputError(f"cannot be read at byte {offset} ({err.strerror or err})", where=shard, fix=fix) from None

    return read_at


def _pread(descriptor: int, offset: int, size: int) -> bytes:
    """All of `size` bytes unless the file ends: one pread gives 2 GiB at most. Much at once comes in memory used again."""
    if buffers.MIN_BYTES <= size <= MAX_MEMBER_BYTES:
        return _pread_again(descriptor, offset, size)  # type: ignore[return-value]  # a view serves
    parts = []
    while size > 0 and (part := os.pread(descriptor, min(size, 2**30), offset)):
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _pread_again(descriptor: int, offset: int, size: int) -> memoryview:
    view, done = buffers.empty((size,), np.dtype(np.uint8)).data, 0
    while done < size and (count := os.preadv(descriptor, [view[done : done + 2**30]], offset + done)):
        done += count
    return view[:done]
