"""A folder of shards that lies elsewhere, used as a folder: what `pathlib.Path` is for local files, RemotePath is for URLs.

In: "shards", "file:///data/shards", "https://host/shards", "s3://bucket/shards" (any URL that fsspec knows).
Out: a Path, or a RemotePath with the few methods of Path that reading shards takes.
A remote file is read in blocks; blocks that lie side by side come in one request. Blocks are kept in a DiskCache, which the ranks
of a node share, and the last few in memory. Two readers may fetch one block at the same time: as each sample is read once per
epoch, only blocks on the border of two samples are ever fetched twice, and no reader waits for another.
"""

import functools
import io
import os
import re
import urllib.parse
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO, cast

from mri_ds.data.cache import DiskCache
from mri_ds.data.ranges import Ranges, Retry, open_ranges, shown

BLOCK_BYTES = 256 * 2**10  # small beside a volume, large beside what a request costs
KEPT_BLOCKS = 16  # in memory, per open file
DEFAULT_CACHE_GIB = 10.0
DEFAULT_RETRY = Retry()


def locate(where: "str | Path | RemotePath", *, cache_dir: str = "", cache_gib: float = DEFAULT_CACHE_GIB) -> Path:
    """A folder's or file's address as something to read from, typed as the Path that a RemotePath stands in for.

    Nothing is touched yet. What is a RemotePath already stays as it is. An empty cache_dir is $MRI_DS_CACHE, or mri_ds in the
    user's cache folder; cache_gib 0 keeps nothing on disk.

    >>> locate("shards") / "manifest.json", str(locate("https://host/shards?key=1f") / "manifest.json")
    (PosixPath('shards/manifest.json'), 'https://host/shards/manifest.json')
    """
    if isinstance(where, RemotePath):
        return cast(Path, where)
    url = re.sub(r"^(\w[\w+.-]+:)/(?=[^/])", r"\1//", str(where))  # a URL that went through a Path has lost a slash
    if url.startswith("file:"):
        return Path(urllib.parse.unquote(re.sub(r"^file:(//(localhost)?(?=/)|//(?!/))?", "/", url)).replace("//", "/"))
    if not re.match(r"\w[\w+.-]+://", url):
        return Path(where)
    folder = Path(cache_dir) if cache_dir else default_cache_dir()
    cache = DiskCache(folder, max_bytes=int(cache_gib * 2**30)) if cache_gib else None
    return cast(Path, RemotePath(re.sub(r"/+(?=\?|$)", "", url, count=1), cache))


def default_cache_dir() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("MRI_DS_CACHE") or Path(home) / "mri_ds")


@dataclass(frozen=True)
class RemotePath:
    """Holds no connection and no open file: safe to copy into worker processes. `str` leaves credentials out."""

    url: str
    cache: DiskCache | None = None
    retry: Retry = DEFAULT_RETRY

    def __str__(self) -> str:
        return shown(self.url)

    def __truediv__(self, name: str) -> "RemotePath":
        path, query = self._parts()
        return replace(self, url=f"{path}/{name}{query}")

    @property
    def name(self) -> str:
        return self._parts()[0].rpartition("/")[2]

    @property
    def parent(self) -> "RemotePath":
        path, query = self._parts()
        return replace(self, url=path.rpartition("/")[0] + query)

    def with_name(self, name: str) -> "RemotePath":
        return self.parent / name

    def is_file(self) -> bool:
        try:
            _ranges(self.url, self.retry)
        except FileNotFoundError:
            return False
        return True

    def stat(self) -> SimpleNamespace:
        return SimpleNamespace(st_size=_ranges(self.url, self.retry).size)

    def open(self, mode: str = "rb") -> BinaryIO:
        assert mode == "rb", "remote files are only read"
        return cast(BinaryIO, RemoteFile(_ranges(self.url, self.retry), self.cache))

    def read_bytes(self) -> bytes:
        with self.open() as file:
            return file.read()

    def read_text(self) -> str:
        return self.read_bytes().decode()

    def _parts(self) -> tuple[str, str]:
        path, mark, query = self.url.partition("?")
        return path, mark + query


@functools.lru_cache(maxsize=4096)
def _ranges(url: str, retry: Retry) -> Ranges:
    """What was learned of a file at first stands for the life of the process: one question per file, and no change unnoticed."""
    return open_ranges(url, retry)


class RemoteFile(io.RawIOBase):
    """A remote file as a binary file to read and seek in."""

    def __init__(self, ranges: Ranges, cache: DiskCache | None) -> None:
        self.ranges, self.cache, self.name = ranges, cache, shown(ranges.url)
        self._place = 0
        self._recent: OrderedDict[int, bytes] = OrderedDict()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self.ranges.size}[whence]
        return self._place

    def read(self, size: int | None = -1) -> bytes:
        """Exactly `size` bytes, fewer only at the end of the file."""
        left = max(0, self.ranges.size - self._place)
        size = left if size is None or size < 0 else min(size, left)
        if not size:
            return b""
        first, last = self._place // BLOCK_BYTES, (self._place + size - 1) // BLOCK_BYTES
        data = b"".join(self._blocks(first, last))
        start = self._place - first * BLOCK_BYTES
        self._place += size
        return data[start : start + size]

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def, override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _blocks(self, first: int, last: int) -> Iterator[bytes]:
        """Blocks first .. last: from memory, from the disk, or all that are missing in a row in one request."""
        number = first
        while number <= last:
            block = self._kept(number)
            if block is not None:
                yield block
                number += 1
                continue
            end = number
            while end < last and self._kept(end + 1) is None:
                end += 1
            yield from self._fetch(number, end)
            number = end + 1

    def _kept(self, number: int) -> bytes | None:
        if number in self._recent:
            self._recent.move_to_end(number)
            return self._recent[number]
        block = self.cache.get(self._key(number)) if self.cache else None
        return self._remember(number, block) if block is not None and len(block) == self._length(number) else None

    def _fetch(self, first: int, last: int) -> Iterator[bytes]:
        """From a server that sends nothing but whole files, the other blocks are taken along into the cache."""
        wanted = range(first, last + 1)
        if self.cache and not self.ranges.is_ranged:
            first, last = 0, (self.ranges.size - 1) // BLOCK_BYTES
        offset = first * BLOCK_BYTES
        pieces, buffer = self.ranges.stream(offset, min(self.ranges.size, (last + 1) * BLOCK_BYTES) - offset), bytearray()
        for number in range(first, last + 1):
            while len(buffer) < self._length(number):
                buffer += next(pieces)
            block = bytes(buffer[: self._length(number)])
            del buffer[: len(block)]
            if self.cache:
                self.cache.put(self._key(number), block)
            if number in wanted:
                yield self._remember(number, block)

    def _remember(self, number: int, block: bytes) -> bytes:
        self._recent[number] = block
        if len(self._recent) > KEPT_BLOCKS:
            self._recent.popitem(last=False)
        return block

    def _length(self, number: int) -> int:
        return min(BLOCK_BYTES, self.ranges.size - number * BLOCK_BYTES)

    def _key(self, number: int) -> str:
        """Another version of a file is another file. Queries are left out: signatures change with every hour."""
        return f"{shown(self.ranges.url)} {self.ranges.size} {self.ranges.version} {number}"
