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
KILLED = [((3, 2), (2, 0)), ((1, 1), (4, 1))]  # before and after
WORLDS = [(ranks, workers) for ranks, workers in product((1, 2, 3, 4), (0, 1, 2))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_into, make_sample) -> Path:
    samples = [make_sample(i, without=("age",) if i % 3 else ()) for i in range(SUBJECTS)]
    return write_into(tmp_path_factory.mktemp("exact") / "shards", samples, per_shard=20)


@pytest.fixture(scope="module")
def launched(folder, tmp_path_factory) -> tuple[Path, dict[tuple, int]]:
    """Everything in one launch. Returns where the logs are, and how many workers each world that was killed had."""
    at = tmp_path_factory.mktemp("runs")
    chains = [killed_chain(folder, at, *case) for case in KILLED] + [[job(folder, at / "whole", 1, 0, 0, STEPS)]]
    for number, (ranks, workers) in enumerate(WORLDS):
        then = WORLDS[(number * 5 + 7) % len(WORLDS)]  # another world, every one once
        assert then != (ranks, workers)
        log = at / f"{ranks}-{workers}"
        chains.append([job(folder, log, ranks, workers, 0, STOP), job(folder, log, *then, STOP, STEPS, part="b")])
    (at / "chains.json").write_text(json.dumps(chains))
    with started(at / "chains.json") as process:
        num_workers = kill_all(at, process)
        assert process.wait(timeout=280) == 0
    return at, num_workers


def killed_chain(folder: Path, at: Path, before: tuple[int, int], after: tuple[int, int]) -> list[dict]:
    """A run that will be killed, and its continuation from the state that it left."""
    log = at / killed_name(before)
    first = job(folder, log, *before, 0, STEPS, pause_s=0.2, is_killed=True)
    return [first, job(folder, log, *after, None, STEPS, part="b")]


def killed_name(before: tuple[int, int]) -> str:
    return f"killed-{before[0]}-{before[1]}"


def kill_all(at: Path, process: subprocess.Popen) -> dict[tuple, int]:
    """Kills the ranks of each run that is to be killed, once it has done four steps; no worker goes on without its rank."""
    waiting, num_workers, orphans = {before for before, _ in KILLED}, {}, []
    end = time.monotonic() + 200
    while waiting:
        assert time.monotonic() < end and process.poll() is None
        for before in sorted(waiting):
            state = at / f"{killed_name(before)}.state"
            if state.exists() and json.loads(state.read_text())["step"] >= 4:
                pids = json.loads((at / f"{killed_name(before)}.a.pids").read_text())
                workers = [child for pid in pids for child in psutil.Process(pid).children()]
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
                waiting.discard(before)
                num_workers[before] = len(workers)
                orphans += workers
        time.sleep(0.02)
    while any(worker.is_running() for worker in orphans):
        assert time.monotonic() < end, "a worker outlives its rank"
        time.sleep(0.02)
    return num_workers


@pytest.fixture(scope="module")
def runs(launched) -> dict[tuple, list[dict]]:
    """What was shown: under "whole" without a break, under (ranks, workers) with a change after STOP steps."""
    at, _ = launched
    return {world: log_lines(at / f"{world[0]}-{world[1]}") for world in WORLDS} | {"whole": log_lines(at / "whole")}


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
def started(chains: Path):
    """The process that forks the ranks, in a group of its own of which nothing is left afterwards."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests/data/ranks.py"), str(chains)], env=environment, start_new_session=True
    )
    try:
        yield process
    finally:
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            child.kill()
        process.kill()
        process.wait()


def log_lines(log: Path, parts: str = "ab") -> list[dict]:
    """All ranks' lines in the order of step and place. A last line that a kill cut short is left out."""
    lines = []
    for path in log.parent.glob(f"{log.name}.[{parts}].[0-9]"):
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


@pytest.mark.parametrize(("before", "after"), KILLED)
def test_killed_in_mid_epoch_and_resumed_in_another_world(launched, runs, before, after):
    at, num_workers = launched
    name = killed_name(before)
    later = log_lines(at / name, parts="b")
    done = later[0]["step"]
    assert 4 <= done < STEPS and done % 3, "the kill was to come in mid-epoch"
    assert num_workers[before] == before[0] * before[1]
    assert len(json.loads((at / f"{name}.b.pids").read_text())) == after[0]
    kept = [line for line in log_lines(at / name, parts="a") if line["step"] < done]
    assert kept + later == runs["whole"]
    assert digest(kept + later) == digest(runs["whole"])
