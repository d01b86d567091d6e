"""Where DICOM bytes come from: a file, a folder or a zip -> sources in name order, none of them trusted.

In: a path.  Out: Source, a file that can be opened again and again. Nothing is unpacked to disk: members of a zip are read in
memory, after its table of contents has been checked (number, sizes, ratio, names), so that no name in it can become a path.
Names inside a folder or a zip often hold a patient's, so a source is called by its place: "file 17 of 240".
"""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from mri_ds.errors import InputError

MAX_FILES = 200_000  # in a folder or a zip: a large study has some ten thousand
MAX_FILE_BYTES = 2**31  # of one file: an enhanced multi-frame object of an hour of functional MRI
MAX_ZIP_BYTES = 2**35  # unpacked, of all members together
MAX_ZIP_RATIO = 200  # of unpacked to packed: scans reach 20, masks and blank slices 100, bombs 1000
FREE_ZIP_BYTES = 2**24  # unpacked bytes that are harmless whatever their ratio
PREAMBLE = 128  # bytes before the mark
MARK = b"DICM"
SUFFIXES = {".dcm", ".dicom", ".ima"}  # a file so named claims to be DICOM; others are DICOM by their content


@dataclass(frozen=True)
class Source:
    """One file. `label` tells it apart without its name; `claims_dicom`: by its suffix. Errors say `where` and `label`."""

    label: str
    size: int
    claims_dicom: bool
    where: Path  # what the user gave
    path: Path  # where the bytes are
    archive: zipfile.ZipFile | None = None
    member: zipfile.ZipInfo | None = None

    def open(self) -> BinaryIO:
        """A seekable stream that never reads, nor allocates, past the file's end. Raises OSError or InputError."""
        if self.archive is None or self.member is None:
            return _Clipped(self.path.open("rb"), self.size)  # type: ignore[return-value]
        try:
            with self.archive.open(self.member) as stream:
                content = stream.read(self.size + 1)  # one more, so that the checksum is compared
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError):
            raise InputError(f"{self.label} in it is damaged", where=self.where, fix="download or pack it again") from None
        return io.BytesIO(content)


@contextmanager
def open_sources(path: Path) -> Iterator[list[Source]]:
    """The files of a file, folder (with its subfolders) or zip, sorted by name.

    Raises InputError for a path that is missing or unreadable, and for a zip that is damaged, encrypted, too large or unsafe.
    """
    if path.is_dir():
        yield _sources_of_folder(path)
    elif _is_zip(path):
        try:
            archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError, UnicodeDecodeError):
            raise InputError("cannot be read as a zip", where=path, fix="download or pack it again") from None
        with archive:
            yield _sources_of_zip(path, archive)
    else:
        yield _numbered([path], path)


def is_dicom_bytes(head: bytes) -> bool:
    """Whether a file's first 132 bytes are DICOM's: the mark after the preamble, or (old files) bare elements of group 2 or 8."""
    if head[PREAMBLE : PREAMBLE + 4] == MARK:
        return True
    return (
        head[:3] in (b"\x02\x00\x00", b"\x02\x00\x02", b"\x08\x00\x00", b"\x08\x00\x05", b"\x08\x00\x08") and head[3:4] == b"\0"
    )


def _is_zip(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06") or path.suffix.lower() == ".zip"
    except FileNotFoundError:
        raise InputError("no such file or folder", where=path, fix="check the path") from None
    except OSError as err:
        raise InputError(f"cannot be opened ({err.strerror})", where=path, fix="check the path and its permissions") from None


def _sources_of_folder(path: Path) -> list[Source]:
    found: list[Path] = []
    for folder, folders, names in os.walk(path, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(folder) / name for name in names if not name.startswith(".")]
        if len(found) > MAX_FILES:
            raise InputError(f"holds over {MAX_FILES} files", where=path, fix="give the folder of one study or series")
    return _numbered(sorted(file for file in found if file.is_file()), path)


def _numbered(files: Sequence[Path], path: Path) -> list[Source]:
    sources = []
    for number, file in enumerate(files, start=1):
        label = "the file" if file == path else f"file {number} of {len(files)}"
        try:
            size = file.stat().st_size
        except OSError as err:
            raise InputError(f"{label} cannot be opened ({err.strerror})", where=path, fix="check its permissions") from None
        if size > MAX_FILE_BYTES:
            raise InputError(f"{label} has {size} bytes, over {MAX_FILE_BYTES}", where=path, fix="export one series per file")
        sources.append(Source(label, size, file.suffix.lower() in SUFFIXES, path, file))
    return sources


def _sources_of_zip(path: Path, archive: zipfile.ZipFile) -> list[Source]:
    members = sorted((info for info in archive.infolist() if not info.is_dir()), key=lambda info: info.filename)
    if len(members) > MAX_FILES:
        raise InputError(f"holds over {MAX_FILES} files", where=path, fix="give the zip of one study or series")
    unpacked, packed = sum(info.file_size for info in members), sum(info.compress_size for info in members)
    most = max((info.file_size for info in members), default=0)
    if most > MAX_FILE_BYTES or unpacked > MAX_ZIP_BYTES or unpacked > max(FREE_ZIP_BYTES, MAX_ZIP_RATIO * packed):
        what = f"would unpack from {packed} to {unpacked} bytes"
        raise InputError(what, where=path, fix="it looks like a zip bomb: unpack it yourself if you trust it")
    for info in members:
        name = PurePosixPath(info.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or ":" in name.parts[0]:
            raise InputError("holds a name that points outside it", where=path, fix="pack it again; do not trust its origin")
        if info.flag_bits & 1:
            raise InputError("is encrypted", where=path, fix="unpack it yourself and give the folder")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError("is packed by an unusual method", where=path, fix="pack it with plain deflate")
    visible = [info for info in members if not any(part.startswith((".", "__MACOSX")) for part in info.filename.split("/"))]
    return [
        Source(
            f"file {number} of {len(visible)}",
            info.file_size,
            PurePosixPath(info.filename).suffix.lower() in SUFFIXES,
            path,
            path,
            archive,
            info,
        )
        for number, info in enumerate(visible, start=1)
    ]


class _Clipped:
    """A binary file whose `read(n)` asks for no more than is there: a damaged length must not become an allocation."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._size - self._file.tell())
        return self._file.read(left if size is None or size < 0 else min(size, left))

    def __enter__(self) -> _Clipped:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
