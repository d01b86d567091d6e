"""Writes the files of one checkpoint beside the training: a copy is taken at once, a thread of each rank brings it to the disk.

Ranks agree through the process group's key-value store and never by collectives, which belong to the training's thread. Rank 0
commits once every rank has told the checksums of its files. A rank that cannot write says so: then the partial folder goes, the
last good checkpoint stays the last, and every rank raises the same RunError.
"""

import atexit
import contextlib
import copy
import hashlib
import json
import os
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from mri_ds.errors import RunError
from mri_ds.training import distributed

PATIENCE_S = 3600  # with the slowest rank's disk; a rank that died ends the run long before
LAST_CHANCE_S = 10.0  # of a checkpoint that is on its way when training fails: good ranks finish it in less
Files = dict[str, dict[str, Any]]  # name -> {"bytes", "sha256"}
Commit = Callable[[Files], None]


class Writer:
    """One checkpoint at a time: `submit` returns at once, `wait` when it is on the disk of every rank."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._failure = ""
        self._count = 0

    def submit(self, part: Path, jobs: Mapping[str, Any], commit: Commit) -> None:
        """Writes `jobs` (file name -> bytes, or what torch.save takes) into `part`; rank 0 then calls `commit` with all files.

        Nothing of `jobs` may change any more: see `snapshot`. Every rank must call it, with the checkpoint before being done.
        """
        assert self._thread is None, "wait for the checkpoint before"
        self._count += 1
        thread = threading.Thread(target=self._run, args=(part, jobs, commit, self._count, _store()), daemon=True)
        atexit.register(thread.join, LAST_CHANCE_S)
        thread.start()
        self._thread = thread

    def wait(self) -> None:
        """Raises RunError where the checkpoint could not be written, on every rank alike."""
        if self._thread is not None:
            self._thread.join()
            atexit.unregister(self._thread.join)
            self._thread = None
        self.check()

    def check(self) -> None:
        """As `wait`, but only for what is known by now."""
        if self._failure:
            raise RunError(self._failure)

    def _run(self, part: Path, jobs: Mapping[str, Any], commit: Commit, number: int, store: Any) -> None:
        try:
            said: dict[str, Any] = {"files": {name: write(part / name, content) for name, content in jobs.items()}}
        except Exception as err:
            said = {"failure": f"rank {distributed.rank()} cannot write the checkpoint {part.stem}: {_cause(err)}"}
        del jobs

        def judge(everyone: list[dict[str, Any]]) -> str:
            failures = [one["failure"] for one in everyone if "failure" in one]
            try:
                if not failures:
                    commit({name: facts for one in everyone for name, facts in one["files"].items()})
            except Exception as err:
                failures = [f"rank 0 cannot write the checkpoint {part.stem}: {_cause(err)}"]
            if failures:
                shutil.rmtree(part, ignore_errors=True)
            return failures[0] if failures else ""

        try:
            self._failure = _agree(store, f"checkpoint/{number}", said, judge)
        except Exception as err:  # the store is gone: rank 0 is, and the run with it
            self._failure = f"rank {distributed.rank()} cannot agree on the checkpoint {part.stem}: {_cause(err)}"
        if self._failure:
            _failures.append(self._failure)


_failures: list[str] = []  # of this process, which is one rank of one run


def tell_cause() -> None:
    """To be called when training broke: raises RunError where it did so because a checkpoint could not be written.

    Ranks hear of that one after another; the first to leave breaks the others' collectives, and this is why.
    """
    if _failures:
        raise RunError(_failures[0])


def snapshot(value: Any) -> Any:
    """A copy that training cannot change: tensors dense and on the CPU, containers and small objects copied."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if type(value) in (dict, OrderedDict):
        return type(value)((key, snapshot(item)) for key, item in value.items())
    if type(value) in (list, tuple):
        return type(value)(snapshot(item) for item in value)
    return copy.deepcopy(value)


def write(path: Path, content: Any) -> dict[str, Any]:
    """Brings bytes, or what torch.save takes, to the disk; {"bytes", "sha256"} of the file."""
    with path.open("wb") as file:
        hashed = _Hashed(file)
        try:
            if isinstance(content, bytes):
                hashed.write(content)
            else:
                torch.save(content, hashed)  # type: ignore[arg-type]
        except Exception as err:
            raise (OSError(hashed.failure.errno, hashed.failure.strerror, str(path)) if hashed.failure else err) from None
        file.flush()
        os.fsync(file.fileno())
        return {"bytes": hashed.bytes, "sha256": hashed.digest.hexdigest()}


class _Hashed:
    """A file that knows the checksum of what went into it, and why it took no more (torch.save forgets the reason)."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest, self.bytes = file, hashlib.sha256(), 0
        self.failure: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            self.file.write(content)
        except OSError as err:
            self.failure = err
            raise
        view = memoryview(content)
        self.digest.update(view)
        self.bytes += view.nbytes
        return view.nbytes

    def flush(self) -> None:
        self.file.flush()


def _store() -> Any:
    """The process group's, to be kept: it outlives the group. None in a world of one."""
    return torch.distributed.distributed_c10d._get_default_store() if distributed.world_size() > 1 else None


def _agree(store: Any, topic: str, said: dict[str, Any], judge: Callable[[list[dict[str, Any]]], str]) -> str:
    """Every rank says something, rank 0 judges, all get its verdict. For threads beside the training."""
    if store is None:
        return judge([said])
    keys = [f"{topic}/{rank}" for rank in range(distributed.world_size())]
    store.set(keys[distributed.rank()], json.dumps(said))
    if distributed.rank() == 0:
        _wait_for(store, keys)
        verdict = judge([json.loads(store.get(key)) for key in keys])
        for key in keys:
            store.delete_key(key)
        store.set(f"{topic}/verdict", json.dumps(verdict))
        with contextlib.suppress(TimeoutError):  # the store goes when rank 0 does, so all must have read it before
            _poll(lambda: store.add(f"{topic}/readers", 0) == len(keys) - 1, within_s=LAST_CHANCE_S)
        return verdict
    _wait_for(store, [f"{topic}/verdict"])
    verdict = json.loads(store.get(f"{topic}/verdict"))
    store.add(f"{topic}/readers", 1)
    return str(verdict)


def _wait_for(store: Any, keys: list[str]) -> None:
    _poll(lambda: store.check(keys), within_s=PATIENCE_S)


def _poll(is_true: Callable[[], bool], *, within_s: float) -> None:
    pause_s, end = 0.01, time.monotonic() + within_s
    while not is_true():
        if time.monotonic() > end:
            raise TimeoutError(f"no word from the other ranks within {within_s:g} s")
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.5)


def _cause(err: Exception) -> str:
    return (err.strerror or str(err)) + (f": {err.filename}" if err.filename else "") if isinstance(err, OSError) else str(err)
