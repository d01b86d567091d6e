"""A signal to one rank: all ranks end the same step, save it and go; the same command goes on as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import launches
import pytest

STEPS = 24
SETS = [
    f"training.steps={STEPS}",
    "training.log_every=1",
    "training.global_batch=4",
    "training.validate_every=0",
    "training.image_every=1000",
    "data.num_workers=0",
    "data.patch=[16,16,16]",
    "model.num_layers=1",
    "model.embed_dim=16",
    "model.expert_hidden=16",
    "model.use_kan=false",
]


def options(shards, run, *more):
    ds_config = str(launches.ROOT / "ds_configs/tiny.json")
    return ["--ds_config", ds_config, "--data", str(shards), "--run", str(run), *more, *(f"--set={item}" for item in SETS)]


def start(shards, run, log, *more):
    """One rank, from the command line."""
    streams = {"stdout": subprocess.PIPE, "stderr": log.open("w"), "stdin": subprocess.DEVNULL}
    command = [sys.executable, "launch/train.py", *options(shards, run, "--json", *more)]
    return subprocess.Popen(command, env=launches.environment(), cwd=launches.ROOT, text=True, start_new_session=True, **streams)


@pytest.fixture
def started():
    """Processes that a test appends here do not outlive it."""
    processes: list[subprocess.Popen] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def listens(process, signum):
    """Whether the process has a handler of its own for the signal, as the kernel sees it."""
    caught = next(line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return int(caught.split()[1], 16) >> (signum - 1) & 1


def told(run):
    path = run / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def wait_for_step(run, step, *, is_up):
    def is_there():
        assert is_up(), f"ended before step {step}"
        return told(run) >= step

    launches.wait_for(is_there, timeout_s=240, what=f"step {step}")


@pytest.mark.timeout(600)
def test_two_ranks_leave_at_one_step_and_lose_none(shards, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"

    def launch(run, name):
        return forked.started(2, tmp_path / f"{name}{{rank}}", forked.command, [*options(shards, run), "--json"])

    def ends(ranks, timeout_s):
        for rank in ranks:
            rank.join(timeout_s)
        return [rank.exitcode for rank in ranks]

    with launch(whole, "whole") as ranks:
        assert ends(ranks, 240) == [0, 0]
    for signum, code, least in ((signal.SIGUSR1, 0, 3), (signal.SIGTERM, 143, 8)):
        with launch(broken, signum.name) as ranks:
            wait_for_step(broken, least, is_up=lambda ranks=ranks: all(rank.is_alive() for rank in ranks))
            os.kill(ranks[1].pid, signum)  # rank 0 hears it from rank 1
            assert ends(ranks, 120) == [code, code]
        first, second = ((tmp_path / f"{signum.name}{rank}").read_text() for rank in (0, 1))
        left = json.loads(next(line for line in first.splitlines() if line.startswith("{")))
        assert left == {"run": str(broken), "stopped_by": signum.name, "step": told(broken)}
        assert left["step"] < STEPS and (broken / "checkpoints/latest").read_text() == f"step{left['step']:06d}"
        assert f"stopped by {signum.name} after step {left['step']}" in first
        assert "{" not in second and "stopped" not in second
        assert (broken / "requeue").exists() == (signum == signal.SIGUSR1)
    with launch(broken, "rest") as ranks:
        assert ends(ranks, 240) == [0, 0]
    expected, got = launches.losses(whole), launches.losses(broken)
    lines = [json.loads(line)["step"] for line in (broken / "metrics.jsonl").read_text().splitlines()]
    assert lines == list(range(1, STEPS + 1))  # no step lost, none twice
    assert list(got.values()) == pytest.approx(list(expected.values()), rel=1e-5)


@pytest.mark.timeout(600)
def test_every_signal_has_its_exit_code(shards, tmp_path, started):
    """SIGUSR1 during the imports, hence before the first step; then others later, to the rank and its data worker alike."""
    run, step = tmp_path / "run", 0
    process = start(shards, run, tmp_path / "early")
    started.append(process)
    launches.wait_for(lambda: listens(process, signal.SIGUSR1), timeout_s=30, what="the handler")
    assert "torch" not in Path(f"/proc/{process.pid}/maps").read_text()  # it listens before it imports
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=120) == 0
    assert json.loads(process.stdout.read()) == {"run": str(run), "stopped_by": "SIGUSR1", "step": 0}
    assert (run / "requeue").exists() and not (run / "checkpoints").exists()
    for signum, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        process = start(shards, run, tmp_path / signum.name, "--set=data.num_workers=1")
        started.append(process)
        wait_for_step(run, step + 2, is_up=lambda process=process: process.poll() is None)
        os.killpg(process.pid, signum)
        assert process.wait(timeout=120) == code, (tmp_path / signum.name).read_text()[-2000:]
        step = json.loads(process.stdout.read())["step"]
        assert (run / "checkpoints/latest").read_text() == f"step{step:06d}" and not (run / "requeue").exists()


@pytest.mark.timeout(60)
def test_ctrl_c_twice_does_not_wait_for_the_step():
    """And a repeat within a second, as launchers send it on top of the terminal's, does not count."""
    program = (
        "import signal, sys, time\n"
        "from mri_ds.training import signals\n"
        "signals.listen(), signals.heard(), print('up', flush=True)\n"
        "try: time.sleep(30)\n"
        "except KeyboardInterrupt: sys.exit(9)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=launches.ROOT)
    assert process.stdout.readline() == "up\n"
    for wait_s in (0.2, 1.5):
        process.send_signal(signal.SIGINT)
        time.sleep(wait_s)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 9


@pytest.mark.timeout(60)
def test_nohup_keeps_the_terminals_end_out():
    program = (
        "import os, signal; from mri_ds.training import signals\n"
        "signals.listen(), os.kill(os.getpid(), signal.SIGHUP), print(signals.heard())"
    )
    for ignore, heard in ((True, "0"), (False, "1")):
        process = subprocess.run(
            [sys.executable, "-c", program],
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN if ignore else signal.SIG_DFL),  # noqa: B023
            capture_output=True,
            text=True,
            cwd=launches.ROOT,
            env=os.environ,
        )
        assert process.stdout.strip() == heard
