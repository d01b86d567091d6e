"""Shards behind a web server that is slow, cuts connections, returns 500s or ignores ranges: no sample lost, none twice."""

import itertools
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
from servers import Server

from mri_ds.config import DataConfig
from mri_ds.data import remote
from mri_ds.data.cache import DiskCache
from mri_ds.data.index import ShardDataset, index_path
from mri_ds.data.loader import make_loader
from mri_ds.data.ranges import Retry
from mri_ds.data.remote import BLOCK_BYTES, RemoteFile, RemotePath, locate
from mri_ds.errors import InputError

FAST = Retry(attempts=5, first_s=0.001, most_s=0.01, timeout_s=1)
FAULTS = ["500", "", "cut", "", "reset", "slow", "503", "", "stall", "", "429", "", ""]  # one after the other
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(write_folder, make_sample) -> Path:
    """Seven subjects of about 100 kB in three shards."""
    return write_folder([make_sample(i, shape=(24, 20, 26), without=("age",) if i == 4 else ()) for i in range(7)])


@pytest.fixture
def serve():
    running = []

    def start(folder, **how) -> Server:
        running.append(Server(folder, **how).__enter__())
        return running[-1]

    yield start
    for server in running:
        server.__exit__()


@pytest.fixture
def at(tmp_path):
    """at(url, max_bytes) -> a RemotePath with a cache of its own and short waits."""

    def make(url: str, max_bytes: int | None = 50 * 2**20) -> RemotePath:
        cache = DiskCache(tmp_path / "cache", max_bytes=max_bytes, keep_free_bytes=0) if max_bytes else None
        return RemotePath(url, cache, FAST)

    return make


def shown(dataset, *, steps, workers=0, start_step=0, **changes) -> list:
    data = DataConfig(spacing_mm=(1, 1, 1), patch=(8, 8, 8), augment=False, num_workers=workers, **changes)
    kwargs = {"seed": 0, "global_batch": 4, "micro_batch": 2, "rank": 0, "world_size": 1}
    return list(itertools.islice(make_loader(dataset, data, dataset.tasks, start_step=start_step, **kwargs), 2 * steps))


def ids(batches) -> list[str]:
    return [subject for batch in batches for subject in batch["subject_id"]]


def same_samples(one: ShardDataset, other: ShardDataset) -> bool:
    pairs = [(one.read(i), other.read(i)) for i in range(7)]
    return all(
        a["subject_id"] == b["subject_id"]
        and np.array_equal(a["image"], b["image"])
        and np.array_equal(a["targets"]["tissue"], b["targets"]["tissue"])
        for a, b in pairs
    )


@pytest.mark.parametrize(("max_bytes", "ranges"), [(None, True), (2**20, False), (50 * 2**20, True)])
def test_every_sample_survives_every_fault(folder, serve, at, ranges, max_bytes):
    server = serve(folder, ranges=ranges, fault=lambda number, path: FAULTS[number % len(FAULTS)])
    far, near = ShardDataset(at(server.url, max_bytes), "train"), ShardDataset(folder, "train")
    assert far.subject_ids == near.subject_ids and same_samples(far, near)
    assert {fault for *_, fault in server.requests} >= set(FAULTS)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_over_a_bad_line_gives_the_batches_of_a_local_one(folder, serve, at, workers):
    server = serve(folder, fault=lambda number, path: FAULTS[number % len(FAULTS)])
    expected = shown(ShardDataset(folder, "train"), steps=4)
    got = shown(ShardDataset(at(server.url), "train"), steps=4, workers=workers)
    assert ids(got) == ids(expected)
    assert all((a["image"] == b["image"]).all() for a, b in zip(got, expected))


def test_the_second_reading_comes_from_the_disk_and_no_byte_is_fetched_twice(folder, serve, at):
    server = serve(folder)
    first = ShardDataset(at(server.url), "train")
    assert same_samples(first, ShardDataset(folder, "train"))
    total = sum(path.stat().st_size for path in folder.iterdir())
    assert server.bytes_sent <= total + len(server.requests)  # each question for a size costs one byte
    sent, number = server.bytes_sent, len(server.requests)
    assert same_samples(first, ShardDataset(folder, "train"))
    assert (server.bytes_sent, len(server.requests)) == (sent, number)


def test_a_server_of_whole_files_sends_each_once(folder, serve, at):
    server = serve(folder, ranges=False)
    assert same_samples(ShardDataset(at(server.url), "train"), ShardDataset(folder, "train"))
    for shard in folder.glob("*.tar"):
        assert [path for path, *_ in server.requests].count(f"/{shard.name}") == 2  # its size, then all of it


def test_another_version_of_a_file_is_not_taken_from_the_cache(folder, serve, at):
    """Same name and size, other content and ETag."""
    one = serve(folder)
    path = at(one.url) / "manifest.json"
    before = path.read_bytes()
    remote._ranges.cache_clear()
    (folder / "manifest.json").write_bytes(before.replace(b"T1w", b"T3w"))
    one.etag = '"2"'
    assert path.read_bytes() == before.replace(b"T1w", b"T3w")


def test_tars_without_index_are_scanned_at_a_distance(folder, serve, at):
    for shard in folder.glob("*.tar"):
        index_path(shard).unlink()
    assert same_samples(ShardDataset(at(serve(folder).url), "train"), ShardDataset(folder, "train"))


def test_fsspec_and_file_urls_are_folders_of_shards_too(folder):
    for path in folder.iterdir():
        with fsspec.open(f"memory://remote-test/{path.name}", "wb") as file:
            file.write(path.read_bytes())
    near = ShardDataset(folder, "train")
    assert same_samples(ShardDataset(locate("memory://remote-test", cache_gib=0), "train"), near)
    assert same_samples(ShardDataset(f"file://{folder}", "train"), near)


def test_a_folder_without_shards_is_told_at_once(serve, tmp_path, at):
    with pytest.raises(InputError, match=r"no shards here \(no manifest.json\)"):
        ShardDataset(at(serve(tmp_path).url), "train")


# ---- shards that vanish --------------------------------------------------------------------------------------------


def vanish(folder: Path, dataset: ShardDataset) -> str:
    (folder / "train-000001.tar").unlink()
    return str(dataset.folder / "train-000001.tar")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("is_remote", [False, True])
def test_a_shard_that_vanishes_is_one_clear_error(folder, serve, at, workers, is_remote):
    dataset = ShardDataset(at(serve(folder).url) if is_remote else folder, "train")
    name = vanish(folder, dataset)
    with pytest.raises(InputError) as caught:
        shown(dataset, steps=2, workers=workers)
    text = str(caught.value)
    reason = "it is not there (HTTP 404)" if is_remote else "No such file or directory"
    assert text.startswith(f"{name}: cannot be read") and reason in text and ". Fix: " in text and "\n" not in text


@pytest.mark.parametrize("workers", [0, 2])
def test_asked_to_skip_it_goes_on_masks_and_counts(folder, serve, at, workers, caplog, monkeypatch):
    """Three subjects of seven are in the shard that vanishes."""
    monkeypatch.setattr("mri_ds.data.loader.MAX_SKIPPED", 0.5)
    dataset = ShardDataset(at(serve(folder).url), "train")
    lost = set(dataset.subject_ids[3:6])
    whole = shown(ShardDataset(folder, "train"), steps=4)
    vanish(folder, dataset)
    got = shown(dataset, steps=4, workers=workers, skip_unreadable=True)
    assert ids(got) == ["" if subject in lost else subject for subject in ids(whole)]
    for a, b in zip(got, whole):
        for i, subject in enumerate(b["subject_id"]):
            if subject in lost:
                assert not a["image"][i].any() and all(not mask[i] for mask in a["mask"].values())
            else:
                assert not subject or (a["image"][i] == b["image"][i]).all()  # padding may repeat one that is lost
                assert all((a["mask"][t][i] == b["mask"][t][i]) for t in a["mask"])
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3 and {line.split()[2].rstrip(":") for line in lines} == lost and "3 of 7 so far" in lines[-1]


def test_skipping_ends_where_the_data_are_lost(folder):
    dataset = ShardDataset(folder, "train")
    for shard in folder.glob("*.tar"):
        shard.unlink()
    with pytest.raises(
        InputError, match=r"2 of 7 subjects cannot be read, the last because: .*No such file.*put the shards back"
    ):
        shown(dataset, steps=2, skip_unreadable=True)


# ---- paths and files -----------------------------------------------------------------------------------------------


def test_a_remote_file_reads_and_seeks_as_a_local_one(tmp_path, serve, at):
    data = random.Random(0).randbytes(5 * BLOCK_BYTES + 17)
    (tmp_path / "a.bin").write_bytes(data)
    url, dice = serve(tmp_path).url, random.Random(1)
    for cache in (None, 3 * BLOCK_BYTES, 50 * 2**20):
        with (tmp_path / "a.bin").open("rb") as near, (at(url, cache) / "a.bin").open() as far:
            for _ in range(60):
                place, whence = dice.choice([(dice.randrange(len(data) + 9), 0), (0, 1), (-dice.randrange(len(data)), 2)])
                assert near.seek(place, whence) == far.seek(place, whence)
                size = dice.choice([0, 1, 100, BLOCK_BYTES, 3 * BLOCK_BYTES, -1])
                assert near.read(size) == far.read(size) and near.tell() == far.tell()


def test_blocks_side_by_side_come_in_one_request(tmp_path, serve, at):
    (tmp_path / "a.bin").write_bytes(bytes(20 * BLOCK_BYTES))
    server = serve(tmp_path)
    with (at(server.url) / "a.bin").open() as file:
        file.seek(5 * BLOCK_BYTES)
        file.read(10)
        file.seek(2 * BLOCK_BYTES)
        file.read(8 * BLOCK_BYTES)
    asked = [tuple(int(n) // BLOCK_BYTES for n in text[6:].split("-")) for _, text, _ in server.requests[1:]]
    assert asked == [(5, 5), (2, 4), (6, 9)]
    assert isinstance(file, RemoteFile)


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("shards", "shards/x"),
        (Path("/a/b"), "/a/b/x"),
        ("file:///a/b%20c", "/a/b c/x"),
        ("file:/a/b", "/a/b/x"),
        ("file://localhost/a/b", "/a/b/x"),
        ("https://h/a/b", "https://h/a/b/x"),
        (Path("https://h/a/b"), "https://h/a/b/x"),  # what a command line that expects a path makes of it
        ("https://u:p@h/a/?k=1", "https://h/a/x"),
        ("s3://bucket/a", "s3://bucket/a/x"),
        ("C/a", "C/a/x"),
    ],
)
def test_addresses(where, text):
    assert str(locate(where) / "x") == text


def test_queries_stay_with_every_name_below():
    path = locate("https://h/a/train-0.tar?k=1")
    assert path.with_name("x.json").url == "https://h/a/x.json?k=1" and path.name == "train-0.tar"
    assert path.parent.url == "https://h/a?k=1"


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("MRI_DS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert locate("s3://b/a").cache.folder == tmp_path / "mri_ds"
    monkeypatch.setenv("MRI_DS_CACHE", str(tmp_path / "mine"))
    assert locate("s3://b/a", cache_gib=0.5).cache.folder == tmp_path / "mine"
    assert locate("s3://b/a", cache_gib=0.5).cache.max_bytes == 2**29 and locate("s3://b/a", cache_gib=0).cache is None
    assert locate("s3://b/a", cache_dir=str(tmp_path)).cache.folder == tmp_path


@pytest.mark.timeout(120)
def test_ranks_that_share_a_cache_over_a_bad_line_show_every_subject_once(folder, serve, tmp_path):
    """Three real ranks with two workers each, one cache of a few blocks."""
    server = serve(folder, fault=lambda number, path: FAULTS[number % len(FAULTS)] if number % 2 else "")
    base = {"workers": 2, "start": 0, "stop": 4, "data": {"augment": False}}
    far = {**base, "ranks": 3, "folder": server.url, "log": str(tmp_path / "far.a"), "state": str(tmp_path / "far.state")}
    near = {**base, "ranks": 1, "folder": str(folder), "log": str(tmp_path / "near.a"), "state": str(tmp_path / "near.state")}
    (tmp_path / "jobs.json").write_text(json.dumps([[far], [near]]))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MRI_DS_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, str(ROOT / "tests/data/ranks.py"), str(tmp_path / "jobs.json")]
    assert subprocess.run(command, env=environment, timeout=100).returncode == 0
    lines = {
        name: sorted((line for path in tmp_path.glob(f"{name}.a.[0-9]") for line in path.read_text().splitlines()), key=by_place)
        for name in ("far", "near")
    }
    assert lines["far"] == lines["near"] and len(lines["far"]) == 4 * 12
    assert {fault for *_, fault in server.requests} >= {"500", "cut", "reset", "503"}
    assert list((tmp_path / "cache").glob("*/*.piece"))


def by_place(line: str) -> tuple[int, int]:
    raw = json.loads(line)
    return raw["step"], raw["place"]
