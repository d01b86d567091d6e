"""Every subject exactly once per epoch on real ranks with real workers, however often their numbers change on the way.

31 subjects divide by nothing; they lie in two shards, fewer than ranks; the global batch is 12, so an epoch has three steps and
five padded places. `ranks.py` is what the processes run.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import psutil
import pytest

from mri_ds.data.order import Order, chain

ROOT = Path(__file__).resolve().parents[2]
SUBJECTS, STEPS, STOP = 31, 8, 4  # two epochs and two steps; the change comes one step into the second epoch
WORLDS = [(ranks, workers) for ranks, workers in product((1, 2, 3, 4), (0, 1, 2))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_into, make_sample) -> Path:
    samples = [make_sample(i, without=("age",) if i % 3 else ()) for i in range(SUBJECTS)]
    return write_into(tmp_path_factory.mktemp("exact") / "shards", samples, per_shard=20)


@pytest.fixture(scope="module")
def runs(folder, tmp_path_factory) -> dict[tuple, list[dict]]:
    """What was shown: under (1, 0, None) without a break, under (ranks, workers, then) with a change after STOP steps."""
    at = tmp_path_factory.mktemp("runs")
    jobs = [job(folder, at / "whole", 1, 0, 0, STEPS)]
    for number, (ranks, workers) in enumerate(WORLDS):
        then = WORLDS[(number * 5 + 7) % len(WORLDS)]  # another world, every one once
        assert then != (ranks, workers)
        jobs.append(job(folder, at / f"{ranks}-{workers}", ranks, workers, 0, STOP))
        jobs.append(job(folder, at / f"{ranks}-{workers}", *then, STOP, STEPS, part="b"))
    (at / "jobs.json").write_text(json.dumps(jobs))
    with started(at / "jobs.json") as process:
        assert process.wait(timeout=280) == 0
    shown = {world: log_lines(at / f"{world[0]}-{world[1]}") for world in WORLDS}
    return shown | {"whole": log_lines(at / "whole")}


def job(folder, log, ranks, workers, start, stop, part="a", **more) -> dict:
    return {
        "folder": str(folder),
        "log": f"{log}.{part}",
        "state": f"{log}.state",
        "ranks": ranks,
        "workers": workers,
        "start": start,
        "stop": stop,
        **more,
    }


@contextmanager
def started(jobs: Path):
    """The process that forks the ranks, in a group of its own of which nothing is left afterwards."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests/data/ranks.py"), str(jobs)], env=environment, start_new_session=True
    )
    try:
        yield process
    finally:
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            child.kill()
        process.kill()
        process.wait()


def log_lines(log: Path) -> list[dict]:
    """All ranks' lines in the order of step and place. A last line that a kill cut short is left out."""
    lines = []
    for path in log.parent.glob(f"{log.name}.[ab].[0-9]"):
        lines += [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return sorted(lines, key=lambda line: (line["step"], line["place"]))


def digest(lines: list[dict]) -> str:
    value = ""
    for step in sorted({line["step"] for line in lines}):
        value = chain(value, [line["id"] for line in lines if line["step"] == step and line["id"]])
    return value


@pytest.mark.timeout(300)
@pytest.mark.parametrize("world", WORLDS, ids=lambda world: f"{world[0]}ranks-{world[1]}workers")
def test_a_run_that_changes_its_world_is_the_run_that_did_not(runs, world):
    whole, changed = runs["whole"], runs[world]
    assert len(whole) == STEPS * 12
    assert changed == whole  # subjects, places, voxels of the crops, weights
    assert digest(changed) == digest(whole)


def test_every_epoch_holds_every_subject_once(runs):
    for lines in runs.values():
        for epoch in (0, 1):
            shown = Counter(line["id"] for line in lines if line["step"] // 3 == epoch)
            assert shown.pop("") == 5
            assert shown == Counter({f"sub-{i:03d}": 1 for i in range(SUBJECTS)})


def test_the_digest_of_what_was_shown_is_the_digest_of_the_plan(runs, folder):
    order = Order(shard_sizes=[20, 11], global_batch=12, seed=11)
    value = ""
    for step in range(STEPS):
        value = chain(value, [f"sub-{i:03d}" for i in order.real(step)])
    assert digest(runs["whole"]) == value


def test_crops_differ_between_epochs(runs):
    first, second = (
        {line["id"]: line["voxels"] for line in runs["whole"] if line["step"] // 3 == e and line["id"]} for e in (0, 1)
    )
    assert sum(first[subject] != second[subject] for subject in first) > SUBJECTS // 2


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("before", "after"), [((3, 2), (2, 0)), ((1, 1), (4, 1))])
def test_killed_in_mid_epoch_and_resumed_in_another_world(folder, tmp_path, runs, before, after):
    log = tmp_path / "run"
    (tmp_path / "first.json").write_text(json.dumps([job(folder, log, *before, 0, STEPS, pause_s=0.2)]))
    with started(tmp_path / "first.json") as process:
        wait_for(lambda: (tmp_path / "run.state").exists() and state(tmp_path)["step"] >= 4)
        pids = json.loads((tmp_path / "run.a.pids").read_text())
        workers = [child for pid in pids for child in psutil.Process(pid).children()]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        assert process.wait(timeout=30) == 1
        assert len(workers) == before[0] * before[1]
        wait_for(lambda: not any(worker.is_running() for worker in workers))  # none goes on without its rank
    done = state(tmp_path)["step"]
    assert 4 <= done < STEPS and done % 3, "the kill was to come in mid-epoch"
    kept = [line for line in log_lines(log) if line["step"] < done]
    (tmp_path / "then.json").write_text(json.dumps([job(folder, log, *after, done, STEPS, part="b")]))
    for path in tmp_path.glob("run.a.[0-9]"):
        path.unlink()
    with started(tmp_path / "then.json") as process:
        assert process.wait(timeout=60) == 0
    assert kept + log_lines(log) == runs["whole"]
    assert digest(kept + log_lines(log)) == digest(runs["whole"])


def state(folder: Path) -> dict:
    return json.loads((folder / "run.state").read_text())


def wait_for(condition, timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"waited {timeout_s} s"
        time.sleep(0.02)
