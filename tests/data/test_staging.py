"""Writing shards is interrupted: killed, out of room, at once with another. Nothing finished is done again, no byte differs."""

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mri_ds.config import TaskConfig
from mri_ds.data import packing, shards
from mri_ds.data.index import ShardDataset
from mri_ds.data.layouts import Dataset, SubjectFiles
from mri_ds.data.shards import read_manifest, write_shards
from mri_ds.data.staging import JOURNAL, STAGING
from mri_ds.errors import InputError

TASKS = {"tissue": TaskConfig(kind="segmentation", classes=["background", "grey"]), "age": TaskConfig(kind="regression")}


def make_dataset(folder: Path, count: int, size: int = 12) -> Dataset:
    folder.mkdir(exist_ok=True)
    subjects = []
    for i in range(count):
        image, label = folder / f"sub-{i:02d}.nii", folder / f"sub-{i:02d}_tissue.nii"
        rng = np.random.default_rng(i)
        if not image.exists():
            nib.save(nib.Nifti1Image(rng.normal(100, 20, (size, size, size)).astype(np.float32), np.eye(4)), image)
            nib.save(nib.Nifti1Image(rng.integers(0, 2, (size, size, size)).astype(np.uint8), np.eye(4)), label)
        subjects.append(SubjectFiles(f"sub-{i:02d}", [image], {"tissue": label}, {"age": 20.0 + i}))
    return Dataset("folder", ["T1w"], TASKS, subjects, [])


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def journal(out: Path) -> list[dict]:
    path = out / STAGING / JOURNAL
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def encoded(monkeypatch) -> list[str]:
    """The subjects that are read in this process, in order."""
    seen: list[str] = []
    encode = shards.encode_subject

    def noting(files, tasks, num_channels):
        seen.append(files.subject_id)
        return encode(files, tasks, num_channels)

    monkeypatch.setattr(shards, "encode_subject", noting)
    return seen


def stop_after(monkeypatch, count: int) -> None:
    """KeyboardInterrupt when subject number `count` is read."""
    left = [count]
    encode = shards.encode_subject

    def stopping(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return encode(*args, **kwargs)

    monkeypatch.setattr(shards, "encode_subject", stopping)


def test_a_stopped_call_goes_on_where_it_was_and_the_bytes_are_those_of_an_unbroken_one(tmp_path, monkeypatch, encoded):
    dataset, whole, broken = make_dataset(tmp_path / "in", 20), tmp_path / "whole", tmp_path / "broken"
    write_shards(dataset, whole, num_folds=2, num_workers=1)
    for count in (4, 9, 4):  # ten train subjects in shards of 3, 3, 2, 2
        with monkeypatch.context() as patch:
            stop_after(patch, count)
            with pytest.raises(KeyboardInterrupt):
                write_shards(dataset, broken, num_folds=2, num_workers=1)
        assert not (broken / "manifest.json").exists()
    done = [line["name"] for line in journal(broken)]
    assert done[:5] == [f"train-{i:06d}.tar" for i in range(4)] + ["test-000000.tar"]
    encoded.clear()
    progress = []
    write_shards(dataset, broken, num_folds=2, num_workers=1, progress=lambda *report: progress.append(report))
    num_done = sum(ShardDataset(broken, s).shard_sizes[int(n.split("-")[1][:6])] for n in done for s in [n.split("-")[0]])
    assert len(encoded) == 20 - num_done and progress[0] == (num_done, 20) and progress[-1] == (20, 20)
    assert content(broken) == content(whole) and not (broken / STAGING).exists()


def test_a_subject_that_was_mended_meanwhile_is_read_again_and_those_before_it_are_not(tmp_path, monkeypatch, encoded):
    dataset, out = make_dataset(tmp_path / "in", 20), tmp_path / "out"
    bad = sorted(s.subject_id for s in shards.split_subjects(dataset, num_folds=2, fold=0)["train"])[4]
    path = next(s.images[0] for s in dataset.subjects if s.subject_id == bad)
    good = path.read_bytes()
    path.write_bytes(b"")
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        with pytest.raises(KeyboardInterrupt):
            write_shards(dataset, out, num_folds=2, num_workers=1)
    assert len(journal(out)) == 3 and journal(out)[1]["skipped"][0].startswith(bad)
    path.write_bytes(good)
    encoded.clear()
    manifest = write_shards(dataset, out, num_folds=2, num_workers=1)
    assert manifest.skipped == [] and len(encoded) == 17, "the first shard of three stands"
    write_shards(dataset, tmp_path / "fresh", num_folds=2, num_workers=1)
    assert content(out) == content(tmp_path / "fresh")


@pytest.mark.parametrize("damage", ["tar", "index", "journal"])
def test_what_was_damaged_meanwhile_is_written_again(tmp_path, monkeypatch, damage):
    dataset, out = make_dataset(tmp_path / "in", 12), tmp_path / "out"
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            write_shards(dataset, out, num_folds=2, num_workers=1)
    name = {"tar": "train-000001.tar", "index": "train-000001.index.json", "journal": JOURNAL}[damage]
    path = out / STAGING / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data[:-10]) if damage == "journal" else bytes(data))
    (out / STAGING / "train-000009.tar.part").write_bytes(b"half")
    write_shards(dataset, out, num_folds=2, num_workers=1)
    write_shards(dataset, tmp_path / "fresh", num_folds=2, num_workers=1)
    assert content(out) == content(tmp_path / "fresh")


def test_other_options_are_another_recipe(tmp_path, monkeypatch, encoded):
    dataset, out = make_dataset(tmp_path / "in", 12), tmp_path / "out"
    with monkeypatch.context() as patch:
        stop_after(patch, 8)
        with pytest.raises(KeyboardInterrupt):
            write_shards(dataset, out, num_folds=2, num_workers=1)
    assert len(journal(out)) >= 2
    encoded.clear()
    write_shards(dataset, out, num_folds=3, num_workers=1)
    assert len(encoded) == 12
    write_shards(dataset, tmp_path / "fresh", num_folds=3, num_workers=1)
    assert content(out) == content(tmp_path / "fresh")


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_staging import make_dataset
from mri_ds.data import packing, shards
if __name__ == "__main__":
    packing.MAX_SHARD_BYTES = 60_000
    source, out = Path(sys.argv[2]), Path(sys.argv[3])
    shards.write_shards(make_dataset(source, 24, 24), out, num_folds=3, num_workers=2)
"""


def test_sigkill_in_mid_shard_with_real_processes(tmp_path, monkeypatch):
    """Killed twice at arbitrary moments, its workers with it; the third call, of one process, gives the unbroken call's bytes."""
    dataset, out = make_dataset(tmp_path / "in", 24, 24), tmp_path / "out"
    monkeypatch.setattr(packing, "MAX_SHARD_BYTES", 60_000)  # about one subject each
    for _ in range(2):
        before = len(journal(out))
        args = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(tmp_path / "in"), str(out)]
        child = subprocess.Popen(args, start_new_session=True)
        deadline = time.monotonic() + 280
        while len(journal(out)) < before + 2 and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert not (out / "manifest.json").exists(), "it was done before it could be killed: the test shows nothing"
        assert len(journal(out)) >= before + 2
    with pytest.raises(InputError, match="no shards here"):
        read_manifest(out)
    kept = [line["sha256"] for line in journal(out)]
    seen = []
    monkeypatch.setattr(shards, "encode_subject", _noting(seen, shards.encode_subject))
    manifest = write_shards(dataset, out, num_folds=3, num_workers=1)
    assert len(seen) == 24 - len(kept), "finished shards were done again"
    assert set(kept) <= {digest for split in manifest.splits.values() for digest in split.sha256.values()}
    write_shards(dataset, tmp_path / "fresh", num_folds=3, num_workers=1)
    assert content(out) == content(tmp_path / "fresh")


def _noting(seen, function):
    def noting(files, *args, **kwargs):
        seen.append(files.subject_id)
        return function(files, *args, **kwargs)

    return noting


def _with_little_room(source: Path, out: Path, results) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # else the kernel kills instead of saying EFBIG
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    try:
        write_shards(make_dataset(source, 8, 40), out, num_folds=2, num_workers=1)
    except InputError as err:
        results.put(str(err))


def test_no_room_left_is_one_line_and_what_is_finished_stays(tmp_path):
    """A file-size limit of 200 kB in mid-shard: three of the four subjects of a split make its first shards too large."""
    dataset, out = make_dataset(tmp_path / "in", 8, 40), tmp_path / "out"
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=_with_little_room, args=(tmp_path / "in", out, results))
    child.start()
    line = results.get(timeout=200)
    child.join()
    assert line.startswith(f"{out}: no room left") and "finished shards are kept" in line and "\n" not in line
    assert not list((out / STAGING).glob("*.part")), "half a shard still takes up room"
    write_shards(dataset, out, num_folds=2, num_workers=1)
    assert len(ShardDataset(out, "train")) == 4


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_in_mid_shard(tmp_path):
    """A tmpfs of 600 kB: one shard fits, the second does not; with more room the call goes on behind the first."""
    out = tmp_path / "small"
    out.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(out)], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        dataset = make_dataset(tmp_path / "in", 8, 40)
        with pytest.raises(InputError, match=r"no room left .*finished shards are kept"):
            write_shards(dataset, out, num_folds=2, num_workers=1)
        done = [line["name"] for line in journal(out)]
        assert done and not (out / "manifest.json").exists() and not list((out / STAGING).glob("*.part"))
        subprocess.run(["mount", "-o", "remount,size=20m", str(out)], check=True)
        write_shards(dataset, out, num_folds=2, num_workers=1)
        write_shards(dataset, tmp_path / "fresh", num_folds=2, num_workers=1)
        assert content(out) == content(tmp_path / "fresh")
    finally:
        subprocess.run(["umount", str(out)], check=True)


def test_two_calls_at_once_do_not_write_into_each_other(tmp_path):
    import fcntl

    dataset, out = make_dataset(tmp_path / "in", 6), tmp_path / "out"
    (out / STAGING).mkdir(parents=True)
    with (out / STAGING / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another `mri-ds shard` is writing here"):
            write_shards(dataset, out, num_folds=2)
    assert len(write_shards(dataset, out, num_folds=2).splits["train"].shards) == 3
