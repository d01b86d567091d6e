"""A folder of pieces of remote files, bounded in size, shared by all processes of a node; the least recently used go first.

In: keys (any text) and bytes.  Out: the same bytes, or None.
It is only ever a help: a full disk, a damaged piece or a folder that cannot be written means a miss and one warning, no error.
- Readers take no lock. A piece is written beside and renamed into place, so it is there whole or not at all; its checksum
  tells what a power cut left. A piece that is evicted while it is read stays readable until it is closed.
- Writers take turns under a lock, for which nobody waits long. The bytes of a piece are added to a counter before it is written,
  so a writer that is killed makes the sum too large, never too small, until the next eviction counts anew.
- Pieces may be patients' voxels: only the user can read the folder.
"""

import errno
import fcntl
import hashlib
import logging
import os
import shutil
import struct
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOG = logging.getLogger(__name__)
HEAD = struct.Struct("<8sII")  # magic, CRC-32, length
MAGIC = b"mridscc1"
KEEP_FREE_BYTES = 2**30  # of the disk, for checkpoints and everybody else
EVICT_TO = 0.9  # of the bound, so that not every piece evicts another
WAIT_S = 1.0
PAUSE_S = 60.0  # without writing, after the disk was full
PART = ".part"


class DiskCache:
    """At most `max_bytes` of pieces in `folder`. Holds no open file: safe to copy into other processes.

    >>> cache = DiskCache(Path(tempfile.mkdtemp()), max_bytes=2**20, keep_free_bytes=0)
    >>> cache.put("a", b"voxels"), cache.get("a"), cache.get("b")
    (None, b'voxels', None)
    """

    def __init__(self, folder: Path, *, max_bytes: int, keep_free_bytes: int = KEEP_FREE_BYTES) -> None:
        self.folder, self.max_bytes, self.keep_free_bytes = Path(folder), max_bytes, keep_free_bytes
        self._paused_until = 0.0
        self._has_warned = False

    def get(self, key: str) -> bytes | None:
        path = self._path(key)
        try:
            with path.open("rb") as file:
                head, data = file.read(HEAD.size), file.read()
        except OSError:
            return None
        if len(head) != HEAD.size or HEAD.unpack(head) != (MAGIC, zlib.crc32(data), len(data)):
            path.unlink(missing_ok=True)  # torn by a crash
            return None
        with suppress(OSError):  # evicted meanwhile
            os.utime(path)  # used just now
        return data

    def put(self, key: str, data: bytes) -> None:
        """Keeps `data`, if there is room to be made for it."""
        size, path = HEAD.size + len(data), self._path(key)
        if size > EVICT_TO * self.max_bytes or time.monotonic() < self._paused_until or path.exists():
            return
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            if shutil.disk_usage(self.folder).free < self.keep_free_bytes + size:
                raise OSError(errno.ENOSPC, "the disk is nearly full")
            with self._locked() as counter:
                if counter is not None:
                    self._make_room(counter, size)
                    _write(path, HEAD.pack(MAGIC, zlib.crc32(data), len(data)), data)
        except OSError as err:
            self._pause(err)

    @property
    def num_bytes(self) -> int:
        """Bytes of all pieces, counted now."""
        return sum(size for _, size, _ in self._pieces())

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / name[:2] / f"{name[2:]}.piece"

    @contextmanager
    def _locked(self) -> Iterator[int | None]:
        """The counter file, which is the lock too; None where others hold it for longer than a piece is worth."""
        counter = os.open(self.folder / "bytes", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            yield counter if _lock(counter) else None
        finally:
            os.close(counter)  # lets go of the lock, as the end of the process would

    def _make_room(self, counter: int, size: int) -> None:
        """Books `size` bytes, evicting the least recently used pieces where the bound would be passed."""
        text = os.pread(counter, 32, 0).strip()
        total = int(text) if text.isdigit() else self.max_bytes  # new, or cut short by a crash: count
        if total + size > self.max_bytes:
            total = self._evict(EVICT_TO * self.max_bytes - size)
        os.pwrite(counter, b"%-31d\n" % (total + size), 0)

    def _evict(self, target: float) -> int:
        """Removes the least recently used until at most `target` bytes are left; returns how many that are."""
        pieces = sorted(self._pieces())
        total = sum(size for _, size, _ in pieces)
        for _, size, path in pieces:
            if total <= target and not path.endswith(PART):  # only who holds the lock writes: a part is a killed writer's
                continue
            Path(path).unlink(missing_ok=True)
            total -= size
        return total

    def _pieces(self) -> Iterator[tuple[float, int, str]]:
        """(time of last use, bytes, path) of every piece, half-written ones included."""
        for folder in self.folder.glob("[0-9a-f][0-9a-f]"):
            with os.scandir(folder) as entries:
                for entry in entries:
                    try:
                        facts = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    yield facts.st_mtime, facts.st_size, entry.path

    def _pause(self, err: OSError) -> None:
        self._paused_until = time.monotonic() + PAUSE_S
        if not self._has_warned:
            self._has_warned = True
            LOG.warning("%s: pieces of remote shards are not kept for now (%s)", self.folder, err.strerror or err)


def _lock(handle: int) -> bool:
    """Waits WAIT_S at most for the lock."""
    end = time.monotonic() + WAIT_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(0.002)


def _write(path: Path, head: bytes, data: bytes) -> None:
    handle, part = tempfile.mkstemp(dir=path.parent, suffix=PART)  # readable by the user alone
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(head)
            file.write(data)
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
