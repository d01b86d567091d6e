"""The folder that shards are written in before they are published, and the journal of those that are finished.

In: a folder `out`.  Out: out/.writing with finished shards and journal.jsonl, one line per shard; then, all at once, the shards
in `out`. A call that is killed leaves it all there. The next call takes over every finished shard that is still the one it would
write itself, byte for byte (its recipe, a hash of inputs and options, says so), and goes on from there.
"""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ValidationError

from mri_ds.data.entries import index_path
from mri_ds.data.fingerprint import Summary
from mri_ds.data.manifest import MANIFEST, read_manifest
from mri_ds.data.tars import file_sha256
from mri_ds.errors import InputError

STAGING = ".writing"
JOURNAL, LOCK = "journal.jsonl", "lock"
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

Recipe = Callable[[int, int], str]  # (first, last): what the subjects first .. last - 1 of a split become, as a hash


class Finished(BaseModel):
    """One line of the journal: a shard that is whole, and all that the manifest needs to know of its subjects."""

    split: str
    name: str
    sha256: str
    index_sha256: str
    recipe: str
    num_subjects: int  # of the split's line that it has used up, the skipped ones included
    summaries: list[Summary]
    skipped: list[str]
    notes: list[str] = []


class Journal:
    """The finished shards, in the order they were written."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / JOURNAL
        self._lines = _read(self.path)

    def take_over(self, recipes: dict[str, Recipe]) -> dict[str, list[Finished]]:
        """For each split the finished shards that stand, from its first subject on; forgets and removes everything else."""
        kept: dict[str, list[Finished]] = {split: [] for split in recipes}
        for line in self._lines:
            first = sum(earlier.num_subjects for earlier in kept.get(line.split, []))
            is_next = line.split in recipes and line.recipe == recipes[line.split](first, first + line.num_subjects)
            if is_next and line.name == f"{line.split}-{len(kept[line.split]):06d}.tar" and self._is_whole(line):
                kept[line.split].append(line)
        names = {path.name for lines in kept.values() for line in lines for path in self._files(line)}
        rewritten = self.path.with_suffix(".new")
        rewritten.write_text("".join(line.model_dump_json() + "\n" for lines in kept.values() for line in lines))
        os.replace(rewritten, self.path)  # at no moment is there less in it than stands
        for path in self.folder.iterdir():
            if path.name not in {*names, LOCK, JOURNAL}:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return kept

    def append(self, line: Finished) -> None:
        """On the disk when this returns."""
        with self.path.open("a") as file:
            file.write(line.model_dump_json() + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _is_whole(self, line: Finished) -> bool:
        tar, index = self._files(line)
        return tar.is_file() and index.is_file() and file_sha256(index) == line.index_sha256 and file_sha256(tar) == line.sha256

    def _files(self, line: Finished) -> tuple[Path, Path]:
        tar = self.folder / line.name
        return tar, index_path(tar)


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """out/.writing, on the same disk so that moving is atomic, for this process alone.

    It goes when the call is done, and when it fails before a shard is finished.

    Raises InputError where another process writes to `out`, or the disk is full.
    """
    folder = out / STAGING
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                fix = "wait for it to end, or choose another folder"
                raise InputError("another `mri-ds shard` is writing here", where=out, fix=fix) from None
            try:
                yield folder
            except BaseException:
                if not any(folder.glob("*.tar")):
                    shutil.rmtree(folder)
                raise
            shutil.rmtree(folder)
    except OSError as err:
        if err.errno not in FULL:
            raise
        fix = "free some space and run the same command again: finished shards are kept"
        raise InputError(f"no room left ({err.strerror})", where=out, fix=fix) from None


def publish(folder: Path, out: Path) -> None:
    """Swaps the old shards for the new ones. Without its manifest, which comes last, a folder counts as empty."""
    _remove_old(out)
    for path in sorted(folder.iterdir(), key=lambda path: path.name == MANIFEST):
        if path.name not in {LOCK, JOURNAL}:
            os.replace(path, out / path.name)


def _remove_old(out: Path) -> None:
    """Removes the shards that an earlier call wrote here, and nothing else. Those of another version are ours too."""
    try:
        names = [shard for split in read_manifest(out).splits.values() for shard in split.shards]
    except InputError:
        names = []
    (out / MANIFEST).unlink(missing_ok=True)
    for name in names:
        (out / name).unlink()
        index_path(out / name).unlink(missing_ok=True)


def _read(path: Path) -> list[Finished]:
    """The lines up to the first that a kill has cut off."""
    lines: list[Finished] = []
    try:
        for text in path.read_text().splitlines():
            lines.append(Finished.model_validate(json.loads(text)))
    except (OSError, ValueError, ValidationError):
        pass
    return lines
