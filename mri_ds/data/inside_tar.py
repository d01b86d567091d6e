"""Files inside a plain tar by a path: `scans.tar/p01.t1w.nii.gz` is the member p01.t1w.nii.gz of scans.tar.

So whatever takes paths takes members of other people's tars as well. Nothing is unpacked; a name in a tar that is absolute or
climbs up is refused before it could become a path. Of our own shards `tars.py` and `index.py` are the readers.
"""

import io
import tarfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from mri_ds.errors import InputError

TAR = ".tar"
MAX_MEMBER_BYTES = 4 * 2**30
KEPT_TABLES = 16  # of contents: one per tar that a process reads
FIX = "write the tar again"


class Member(NamedTuple):
    """Where a member's bytes are."""

    tar: Path
    offset: int
    size: int


def members(tar: Path) -> Mapping[str, tuple[int, int]]:
    """{name: (offset of the content, size)} of the regular files in a tar, from its headers, in its order.

    Raises InputError for what is no whole tar, a name that leads outside or comes twice, and a member over MAX_MEMBER_BYTES.
    """
    try:
        state = tar.stat()
    except OSError as err:
        raise InputError(f"cannot be opened ({err.strerror})", where=tar, fix="check the path and its permissions") from None
    return _members(tar, state.st_size, state.st_mtime_ns)


def find_member(path: Path) -> Member | None:
    """The member that a path names; None for a path into no tar. Raises InputError where the tar has no such member."""
    tar = next((parent for parent in path.parents if parent.suffix.lower() == TAR and parent.is_file()), None)
    if tar is None:
        return None
    place = members(tar).get(path.relative_to(tar).as_posix())
    if place is None:
        raise InputError("is not in its tar any more", where=path, fix="put the tar back")
    return Member(tar, *place)


def open_file(path: Path) -> tuple[BinaryIO, int]:
    """A file, or a member of a tar, and its size. Raises OSError, and InputError as `find_member` does."""
    member = find_member(path)
    if member is None:
        return path.open("rb"), path.stat().st_size
    return io.BufferedReader(_Window(member)), member.size


@lru_cache(maxsize=KEPT_TABLES)
def _members(tar: Path, size: int, mtime_ns: int) -> Mapping[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    try:
        with tar.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for info in archive:
                if not info.isreg():
                    continue
                name = PurePosixPath(info.name)
                if name.is_absolute() or ".." in name.parts or "\0" in info.name:
                    raise InputError(f"holds the path {info.name!r}, which leads outside", where=tar, fix=FIX)
                if str(name) in found:
                    raise InputError(f"holds {name} twice", where=tar, fix=FIX)
                if info.size > MAX_MEMBER_BYTES or info.offset_data + info.size > size:
                    what = f"{name} is said to have {info.size} bytes, over {MAX_MEMBER_BYTES} or behind the end"
                    raise InputError(what, where=tar, fix=FIX)
                found[str(name)] = (info.offset_data, info.size)
    except InputError:
        raise
    except (tarfile.TarError, OSError, ValueError, OverflowError, EOFError) as err:
        raise InputError(f"is not a whole tar ({err})", where=tar, fix=FIX) from None
    return found


class _Window(io.RawIOBase):
    """One member's bytes and no other."""

    def __init__(self, member: Member) -> None:
        self._file = member.tar.open("rb", buffering=0)
        self._file.seek(member.offset)
        self._left = member.size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        data = self._file.read(min(len(buffer), self._left)) or b""
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
