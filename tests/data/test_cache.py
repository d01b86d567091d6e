"""The disk cache: right bytes or none, never over its bound, whoever writes, dies or fills the disk."""

import fcntl
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from mri_ds.data import cache as module
from mri_ds.data.cache import DiskCache

KIB = 1024


def piece(number: int, size: int = 10 * KIB) -> bytes:
    return random.Random(number).randbytes(size)


@pytest.fixture
def cache(tmp_path):
    return lambda max_bytes=100 * KIB, **more: DiskCache(tmp_path / "cache", max_bytes=max_bytes, keep_free_bytes=0, **more)


def test_what_was_put_is_there_for_others_and_nothing_else(cache):
    cache().put("a", b"voxels")
    cache().put("empty", b"")
    assert cache().get("a") == b"voxels" and cache().get("empty") == b"" and cache().get("b") is None


def test_only_the_user_can_read_it(cache, tmp_path):
    cache().put("a", b"voxels")
    paths = [tmp_path / "cache", *(tmp_path / "cache").rglob("*")]
    assert len(paths) == 4 and all(path.stat().st_mode & 0o077 == 0 for path in paths)


def test_the_least_recently_used_go_first(cache):
    one = cache(44 * KIB)
    for number in range(4):
        one.put(str(number), piece(number))
        os.utime(one._path(str(number)), (number + 1, number + 1))  # not all within one tick of the clock
    assert one.get("0") == piece(0)  # used again
    one.put("4", piece(4))  # 50 KiB: evicts to 90 % less this one, that is below 30
    assert [one.get(str(number)) is not None for number in range(5)] == [True, False, False, True, True]
    assert one.num_bytes <= 44 * KIB


def test_a_piece_too_large_for_the_cache_is_not_kept_and_evicts_nothing(cache):
    one = cache()
    one.put("small", piece(0))
    one.put("large", piece(1, 95 * KIB))
    assert one.get("large") is None and one.get("small") == piece(0)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:5], lambda data: b"", lambda data: data[:-1] + b"?"]
)
def test_a_damaged_piece_is_a_miss_and_removed(cache, damage):
    one = cache()
    one.put("a", piece(0))
    path = one._path("a")
    path.write_bytes(damage(path.read_bytes()))
    assert one.get("a") is None and not path.exists()
    one.put("a", piece(0))
    assert one.get("a") == piece(0)


@pytest.mark.parametrize("text", [b"", b"abc", b"0" * 31, b"9" * 31])
def test_a_damaged_counter_is_counted_anew(cache, tmp_path, text):
    one = cache(55 * KIB)
    for number in range(4):
        one.put(str(number), piece(number))
    (tmp_path / "cache/bytes").write_bytes(text)
    for number in range(4, 30):
        one.put(str(number), piece(number))
    if text != b"0" * 31:  # a lie that looks right is found at the next eviction
        assert one.num_bytes <= 55 * KIB
    for number in range(30, 60):
        one.put(str(number), piece(number))
    assert one.num_bytes <= 55 * KIB and one.get("59") == piece(59)


def use(folder: Path, seed: int, until: float) -> None:
    one, dice = DiskCache(folder, max_bytes=200 * KIB, keep_free_bytes=0), random.Random(seed)
    while time.time() < until:
        number = dice.randrange(60)
        found = one.get(str(number))
        if found is None:
            one.put(str(number), piece(number))
        elif found != piece(number):
            os._exit(3)
    os._exit(0)


@pytest.mark.parametrize("is_killed", [False, True])
def test_many_processes_and_dying_ones_keep_to_the_bound_and_never_read_a_wrong_byte(tmp_path, is_killed):
    folder, fork = tmp_path / "cache", multiprocessing.get_context("fork")
    until = time.time() + 2
    processes = [fork.Process(target=use, args=(folder, seed, until)) for seed in range(6)]
    for process in processes:
        process.start()
    watcher, most, seen = DiskCache(folder, max_bytes=200 * KIB), 0, set()
    while any(process.is_alive() for process in processes):
        with watcher._locked() as lock:  # else a piece that is evicted while others are counted counts beside its successor
            most = max(most, watcher.num_bytes if lock else 0)
        seen |= {path.name for path in folder.glob("*/*.piece")}
        if is_killed:
            victim = random.choice(processes)
            os.kill(victim.pid, signal.SIGKILL) if victim.is_alive() else None
            victim.join()
            if time.time() < until - 0.3:
                processes[processes.index(victim)] = fork.Process(target=use, args=(folder, random.randrange(10**6), until))
                processes[[not p.pid for p in processes].index(True)].start()
        time.sleep(0.02)
    allowed = {0, -signal.SIGKILL} if is_killed else {0}
    assert {process.exitcode for process in processes} <= allowed
    assert 100 * KIB < most <= 200 * KIB and len(seen) > 30
    one = DiskCache(folder, max_bytes=200 * KIB, keep_free_bytes=0)
    for number in range(100, 130):
        one.put(str(number), piece(number))
    assert not list(folder.glob("*/*.part")) and one.num_bytes <= 200 * KIB and one.get("129") == piece(129)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 512 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a small file system here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_a_miss_and_one_warning(small_disk, caplog):
    one = DiskCache(small_disk / "cache", max_bytes=10 * KIB * KIB, keep_free_bytes=0)
    for number in range(80):
        one.put(str(number), piece(number))
        assert one.get(str(number)) in (piece(number), None)
    assert one.get("0") == piece(0) and one.get("79") is None
    assert [record.message for record in caplog.records] == [
        f"{small_disk}/cache: pieces of remote shards are not kept for now (the disk is nearly full)"
    ]
    assert not list(small_disk.rglob("*.part"))


def test_a_disk_that_fills_in_mid_write_leaves_no_part(cache, monkeypatch, caplog):
    """The check before writing sees room; then others take it."""
    one = cache()
    one.put("a", piece(0))
    monkeypatch.setattr(module.os, "replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    one.put("b", piece(1))
    monkeypatch.undo()
    assert one.get("a") == piece(0) and one.get("b") is None and not list(one.folder.rglob("*.part"))
    one.put("b", piece(1))
    assert one.get("b") is None, "no new attempt within the pause"
    one._paused_until = 0
    one.put("b", piece(1))
    assert one.get("b") == piece(1)
    assert len(caplog.records) == 1 and "No space left" in caplog.text


def test_room_on_the_disk_is_left_to_others(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    one = DiskCache(tmp_path / "cache", max_bytes=100 * KIB, keep_free_bytes=2 * free)
    one.put("a", b"voxels")
    assert one.get("a") is None


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    one = DiskCache(tmp_path / "file", max_bytes=100 * KIB)
    one.put("a", b"voxels")
    assert one.get("a") is None and len(caplog.records) == 1


def test_a_lock_that_somebody_holds_costs_a_second_at_most(cache, monkeypatch):
    monkeypatch.setattr(module, "WAIT_S", 0.1)
    one = cache()
    one.put("a", b"voxels")
    with (one.folder / "bytes").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        began = time.monotonic()
        one.put("b", b"voxels")
        assert time.monotonic() - began < 1 and one.get("b") is None and one.get("a") == b"voxels"
    one.put("b", b"voxels")
    assert one.get("b") == b"voxels"
