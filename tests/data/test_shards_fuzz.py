"""Damaged tars, indexes, manifests and arrays by the hundred: read as they were or refused in one line, soon, in little memory.

Seeds are fixed: a case that fails is named by its number.
"""

import random
import re
import resource
import shutil
import signal
import struct
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from mri_ds.data.chunks import HEAD, decode_array, encode_array
from mri_ds.data.codec import checksum
from mri_ds.data.index import ShardDataset
from mri_ds.data.layouts import find_dataset
from mri_ds.data.lint import lint
from mri_ds.data.shards import write_shards
from mri_ds.errors import InputError

CASES = 250
MAX_S, MAX_BYTES = 10, 2**30
NUMBERS = ["-1", "0", "1e999", "NaN", "99999999999999999999", "4294967296", "null", '"x"', "[]", "{}", "[[[[1]]]]", '"\\u0000"']


@pytest.fixture(scope="module")
def folder(tmp_path_factory, subjects_folder) -> Path:
    """Shards of five real hippocampi where there are some, else of synthetic subjects."""
    import os

    real = (
        Path(os.environ.get("MRI_DS_REAL_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")) / "Task04_Hippocampus"
    )
    dataset = find_dataset(real if real.is_dir() else subjects_folder)
    out = tmp_path_factory.mktemp("fuzz")
    dataset.subjects[:] = dataset.subjects[:5]
    write_shards(dataset, out, num_folds=5, num_workers=1)
    return out


@contextmanager
def within_limits():
    """An alarm after 10 s, and a look at the peak of memory."""

    def ring(*_):
        raise AssertionError(f"still at it after {MAX_S} s")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.signal(signal.SIGALRM, ring)
    signal.alarm(MAX_S * 60)  # of the wall clock, on a machine with other work to do; the processor's time is held to 10 s
    start = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    try:
        yield
    finally:
        signal.alarm(0)
    used = resource.getrusage(resource.RUSAGE_SELF)
    assert used.ru_utime - start < MAX_S
    assert (used.ru_maxrss - before) * 1024 < MAX_BYTES


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to four changes of the kinds that disks, networks and hands make."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        place, length = rng.randrange(len(changed)), rng.choice([1, 2, 4, 64, 512, 4096])
        kind = rng.randrange(8)
        if kind <= 1:
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == 2:
            changed[place : place + length] = rng.randbytes(length)
        elif kind == 3:
            changed[place : place + length] = bytes(length)
        elif kind == 4:
            del changed[place : place + length]
        elif kind == 5:
            changed[place:place] = changed[rng.randrange(len(changed)) :][:length]
        elif kind == 6:
            del changed[place:]
        else:
            changed[place : place + 8] = struct.pack("<q", rng.choice([-1, 0, 2**31, 2**40, 2**62]))
        changed = changed or bytearray(b"\0")
    return bytes(changed)


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Half of the time a number, a string or a brace is exchanged, so that what comes out is mostly JSON still."""
    if rng.random() < 0.5:
        return mutate(data, rng)
    text = data.decode()
    for _ in range(rng.choice([1, 1, 2, 5])):
        places = list(re.finditer(r'-?\d+(\.\d+)?|"[^"]*"|[\[\]{}]', text))
        found = rng.choice(places)
        new = rng.choice([*NUMBERS, text[slice(*rng.choice(places).span())]])
        text = text[: found.start()] + new + text[found.end() :]
    return text.encode()


def read_everything(folder: Path) -> list[tuple]:
    """All that a training would touch of the train split."""
    dataset, seen = ShardDataset(folder, "train"), []
    for i in range(len(dataset)):
        sample = dataset.read(i)
        half = [max(1, n // 2) for n in dataset.shape(i)[1:]]
        crop = dataset.read_crop(i, half, [n - h for n, h in zip(dataset.shape(i)[1:], half)])
        places = [dataset.foreground(i, task) for task in dataset.tasks]
        targets = {task: np.asarray(value).tobytes() for task, value in sample["targets"].items()}
        seen.append((sample["subject_id"], sample["image"].tobytes(), crop["image"].tobytes(), targets, repr(places)))
    return seen


def outcome(read: Callable[[], list]) -> list | None:
    """What was read, or None where it was refused in one line."""
    with within_limits():
        try:
            return read()
        except InputError as err:
            assert "\n" not in str(err) and len(str(err)) < 2000
            return None


@pytest.fixture
def damaged(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "damaged"))


@pytest.mark.parametrize("with_index", [True, False])
def test_damaged_tars_are_read_as_they_were_or_refused(folder, damaged, with_index):
    expected, refused = read_everything(folder), 0
    tar = damaged / "train-000001.tar"
    if not with_index:
        (damaged / "train-000001.index.json").unlink()
    for case in range(CASES):
        tar.write_bytes(mutate((folder / tar.name).read_bytes(), random.Random(case)))
        found = outcome(lambda: read_everything(damaged))
        refused += found is None
        if with_index:
            assert found is None or found == expected, f"case {case} changed what is read"
        else:  # a scan can only believe the names and the meta.json that it finds
            assert found is None or [s[1:3] for s in found] == [s[1:3] for s in expected], f"case {case} changed voxels"
    assert refused > CASES // 4, "hardly anything was damaged: the test shows nothing"


@pytest.mark.parametrize("name", ["train-000001.index.json", "manifest.json"])
def test_damaged_json_never_changes_a_voxel(folder, damaged, name):
    voxels, refused = {sample[1] for sample in read_everything(folder)}, 0
    for case in range(CASES):
        (damaged / name).write_bytes(mutate_json((folder / name).read_bytes(), random.Random(case)))
        found = outcome(lambda: read_everything(damaged))
        refused += found is None
        assert found is None or {sample[1] for sample in found} <= voxels, f"case {case}"
    assert refused > CASES // 4


def test_lint_ends_whatever_it_is_given(damaged, folder):
    """It tells of damage in findings, and only of a manifest that cannot be read by raising."""
    told = 0
    for case in range(40):
        rng = random.Random(case)
        name = rng.choice(["train-000001.tar", "train-000001.index.json", "manifest.json"])
        change = mutate if name.endswith(".tar") else mutate_json
        (damaged / name).write_bytes(change((folder / name).read_bytes(), rng))
        found = outcome(lambda: [str(finding) for finding in lint(damaged, num_workers=1).findings])
        told += found is None or len(found) > 0
        shutil.copy(folder / name, damaged / name)
    assert told > 20


def test_arrays_forged_with_right_checksums_are_refused_or_decoded():
    """Heads of any numbers over a right checksum: what only a writer that means harm would make."""
    rng, plain = random.Random(0), encode_array(np.arange(4000, dtype=np.int16).reshape(2, 10, 10, 20), chunk=(8, 8, 8))
    decoded = 0
    for _ in range(2 * CASES):
        numbers = list(HEAD.unpack(plain[: HEAD.size]))
        for _ in range(rng.choice([1, 1, 2, 3])):
            place = rng.randrange(2, 12)
            numbers[place] = rng.choice(
                [0, 1, 2, 3, 4, 8, 10, 20, 255] if place < 4 else [0, 1, 2, 3, 8, 10, 20, 2**16, 2**32 - 1]
            )
        body = bytearray(plain[HEAD.size :])
        if rng.random() < 0.3:
            body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
        table_end = 8 * 24
        crc = checksum(HEAD.pack(*numbers[:-1], 0) + bytes(body[:table_end]))
        data = HEAD.pack(*numbers[:-1], crc) + bytes(body)
        decoded += outcome(lambda data=data: [decode_array(data)]) is not None
    assert decoded < CASES
