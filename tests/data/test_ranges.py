"""Bytes by range from a real HTTP server that misbehaves, and through fsspec: the right ones, once each, or one clear error."""

import time

import fsspec
import numpy as np
import pytest
from servers import Server

from mri_ds.data.ranges import Retry, open_ranges, shown
from mri_ds.errors import InputError

FAST = Retry(attempts=4, first_s=0.001, most_s=0.002, timeout_s=0.5)
DATA = np.random.default_rng(0).bytes(1_000_003)


@pytest.fixture
def serve(tmp_path):
    """serve(**how) -> a server of the file a.bin, ended with the test."""
    (tmp_path / "a.bin").write_bytes(DATA)
    running = []

    def start(**how) -> Server:
        running.append(Server(tmp_path, **how).__enter__())
        return running[-1]

    yield start
    for server in running:
        server.__exit__()


def get(url: str, offset: int, size: int, retry: Retry = FAST) -> bytes:
    return b"".join(open_ranges(url, retry).stream(offset, size))


@pytest.mark.parametrize(("offset", "size"), [(0, 1), (0, len(DATA)), (17, 400_000), (len(DATA) - 1, 1), (5, 0)])
@pytest.mark.parametrize("ranges", [True, False])
def test_any_range_of_a_good_server(serve, offset, size, ranges):
    assert get(serve(ranges=ranges).url + "/a.bin", offset, size) == DATA[offset : offset + size]


def test_size_version_and_whether_parts_can_be_had(serve):
    one, other = open_ranges(serve().url + "/a.bin", FAST), open_ranges(serve(ranges=False).url + "/a.bin", FAST)
    assert (one.size, one.version, one.is_ranged) == (len(DATA), '"1"', True)
    assert (other.size, other.is_ranged) == (len(DATA), False)


@pytest.mark.parametrize("fault", ["500", "503", "429", "cut", "reset", "stall", "slow", "wrong"])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_fault_in_every_other_answer_costs_no_byte(serve, fault, ranges):
    server = serve(ranges=ranges, fault=lambda number, path: fault if number % 2 == 0 else "")
    assert get(server.url + "/a.bin", 1234, 700_000) == DATA[1234:701_234]
    assert any(noted == fault for *_, noted in server.requests)


def test_after_a_cut_it_goes_on_from_the_byte_reached(serve):
    server = serve(fault=lambda number, path: "cut" if number == 1 else "")
    assert get(server.url + "/a.bin", 0, len(DATA)) == DATA
    assert [asked for _, asked, _ in server.requests] == ["bytes=0-0", "bytes=0-1000002", "bytes=500001-1000002"]


def test_cuts_without_end_are_survived_as_long_as_bytes_come(serve):
    """Every answer stops half way: 20 halvings, more than the attempts that may fail in a row."""
    server = serve(fault=lambda number, path: "cut" if number else "")
    with pytest.raises(InputError, match="connection was cut; tried 4 times"):  # half of one byte is none
        get(server.url + "/a.bin", 0, len(DATA))
    assert len(server.requests) > 20


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("500", r"could not be read \(HTTP 500; tried 4 times\)\. Fix: see whether the server"),
        ("reset", r"could not be read \(.+; tried 4 times\)"),
        ("403", r"refuses it \(HTTP 403\).*credentials"),
        ("wrong", r"another part than was asked for; tried 4 times"),
    ],
)
def test_a_fault_that_stays_is_one_line(serve, fault, message):
    server = serve(fault=lambda number, path: fault if number else "")
    with pytest.raises(InputError, match=message) as caught:
        get(server.url + "/a.bin", 0, 100)
    assert str(caught.value).startswith(f"{server.url}/a.bin: ") and "\n" not in str(caught.value)


def test_what_is_not_there_is_not_waited_for(serve):
    server = serve()
    with pytest.raises(FileNotFoundError, match="HTTP 404"):
        open_ranges(server.url + "/b.bin", FAST)
    assert len(server.requests) == 1


def test_a_file_that_changes_its_size_is_noticed(serve, tmp_path):
    ranges = open_ranges(serve().url + "/a.bin", FAST)
    (tmp_path / "a.bin").write_bytes(DATA[:5000])
    with pytest.raises(InputError, match="has 5000 bytes now and had 1000003"):
        b"".join(ranges.stream(0, 100))


def test_nobody_listening_is_one_line():
    with pytest.raises(InputError, match=r"http://127.0.0.1:9/a.bin: could not be read .*refused"):
        open_ranges("http://127.0.0.1:9/a.bin", FAST)


def test_waits_double_up_to_a_bound_and_heed_the_server():
    retry = Retry(first_s=1, most_s=10)
    for failures, doubled in ((1, 1), (2, 2), (4, 8), (5, 10), (50, 10)):
        assert all(doubled / 2 <= retry.wait_s(failures) <= doubled for _ in range(50))
    assert retry.wait_s(1, asked_s=7) == 7 and retry.wait_s(1, asked_s=10_000) == 10


def test_credentials_are_used_and_neither_shown_nor_sent_elsewhere(serve):
    other = serve()
    server = serve(fault=lambda number, path: "403" if number > 1 else "")
    server.redirects["/moved.bin"] = other.url + "/a.bin"
    url = server.url.replace("://", "://me:s%40cret@") + "/moved.bin?signature=5ecret"
    assert open_ranges(url, FAST).size == len(DATA)
    assert server.requests[0][0] == "/moved.bin?signature=5ecret"
    assert server.headers[0]["Authorization"] == "Basic bWU6c0BjcmV0"  # me:s@cret
    assert "Authorization" not in other.headers[0]
    with pytest.raises(InputError) as caught:
        get(server.url.replace("://", "://me:s%40cret@") + "/a.bin?signature=5ecret", 0, 5)
    assert "cret" not in str(caught.value)


def test_shown_leaves_addresses_readable():
    assert shown("s3://bucket/a/b.tar") == "s3://bucket/a/b.tar"
    assert shown("https://u:p@host:80/a@b.tar?x=1#y") == "https://host:80/a@b.tar"


@pytest.mark.parametrize("url", ["memory://ranges-test/a.bin", "file"])
def test_fsspec_reads_the_same(tmp_path, url):
    if url == "file":
        url = f"local://{tmp_path}/a.bin"
    with fsspec.open(url, "wb") as file:
        file.write(DATA)
    assert open_ranges(url).size == len(DATA)
    assert get(url, 70_000, 900_000) == DATA[70_000:970_000]
    with pytest.raises(FileNotFoundError):
        open_ranges(url + ".not")


def test_fsspec_faults_are_waited_out_and_unknown_schemes_told(monkeypatch):
    with fsspec.open("memory://ranges-test/b.bin", "wb") as file:
        file.write(DATA)
    system = type(fsspec.filesystem("memory"))
    cat, calls = system.cat_file, []

    def flaky(self, path, start=None, end=None, **more):
        calls.append(start)
        if len(calls) % 2:
            raise TimeoutError("busy")
        return cat(self, path, start=start, end=end, **more)[:300_000]  # and short answers

    monkeypatch.setattr(system, "cat_file", flaky)
    assert get("memory://ranges-test/b.bin", 1, 800_000) == DATA[1:800_001]
    assert calls == [1, 1, 300_001, 300_001, 600_001, 600_001]
    with pytest.raises(InputError, match=r"cannot be opened.*Fix: install"):
        open_ranges("nosuch://host/a.bin", FAST)


def test_a_trickle_is_given_up(serve, monkeypatch):
    monkeypatch.setattr("mri_ds.data.ranges.MIN_BYTES_PER_S", 10_000_000)
    server = serve(fault=lambda number, path: "slow" if number else "")
    began = time.monotonic()
    with pytest.raises(InputError, match="slower than"):
        get(server.url + "/a.bin", 0, len(DATA), Retry(attempts=1, first_s=0.001, timeout_s=0.2))
    assert time.monotonic() - began < 2
