"""A real Slurm on four machines: a job that its time limit stops is queued again and ends as if nothing had been.

The uninterrupted run is started by `srun --mpi=pmi2` instead of the batch script, which proves that way of starting too.
"""

import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import launches
import pytest
from cluster import nodes, start_slurm, why_not

NODES, STEPS = 4, 150
SETS = [f"training.steps={STEPS}", "training.log_every=1", "training.global_batch=4", "training.checkpoint_every=40"]
SETS += ["data.num_workers=0"]
SUBMIT = "launch/slurm/submit.sh"
REASON = why_not("munged", "slurmctld", "slurmd", "srun", "sbatch")
REASON = REASON or (
    "" if "MRI_DS_TEST_SLURM" in os.environ else "set MRI_DS_TEST_SLURM=1: two time limits of a minute each, ten minutes in all"
)
needs_slurm = pytest.mark.skipif(bool(REASON), reason=REASON)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with nodes(tmp_path_factory.mktemp("machines") / "cluster", NODES) as cluster:
        start_slurm(cluster)
        yield cluster


def environ(cluster) -> dict[str, str]:
    return {"SLURM_CONF": str(cluster.folder / "slurm/slurm.conf"), "PYTHON": sys.executable}


def options(shards: Path, run: Path) -> list[str]:
    pairs = [x for item in SETS for x in ("--set", item)]
    return ["--ds_config", "ds_configs/tiny.json", "--data", str(shards), "--run", str(run), *pairs]


@needs_slurm
@pytest.mark.timeout(1800)
def test_a_job_that_exceeds_its_time_limit_requeues_itself_and_ends_the_same(cluster, shards, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    text, first_step_s = run_on_nodes(cluster, whole, options(shards, whole))
    assert "4 ranks on node1, node2, node3, node4 (gloo)" in text

    # Slurm sends the signal 5 to 35 s before the limit, which it knows in minutes: one that start-up fits into
    minutes = math.ceil((1.3 * first_step_s + 35) / 60)
    limit = ["--time", str(minutes), "--signal", "USR1@5", "--partition", "cpu"]
    limit += ["--container-prefix", "unshare --mount --ipc"]  # namespaces of its own, as container runtimes make them
    submit = ["bash", SUBMIT, "--nodes", str(NODES), *limit, "--", *options(shards, broken)]
    told = cluster.ask("head", *submit, timeout_s=300, **environ(cluster))
    job = re.match(r"job (\d+): 4 ranks on 4 nodes", told)[1]
    log = broken / f"slurm-{job}.log"
    assert f"tail -F {log}" in told
    state: dict[str, str] = {}

    def is_over() -> bool:
        state.update(re.findall(r"(\w+)=(\S*)", cluster.ask("head", "scontrol", "show", "job", job, **environ(cluster))))
        if state["Restarts"] == "1" and state["TimeLimit"] != "00:50:00":  # once is enough, also on a slow machine
            cluster.ask("head", "scontrol", "update", f"JobId={job}", "TimeLimit=50", **environ(cluster))
        time.sleep(1)
        return state["JobState"] in ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY")

    launches.wait_for(is_over, timeout_s=900, what=f"job {job}")
    text = log.read_text()
    assert state["JobState"] == "COMPLETED" and state["ExitCode"] == "0:0", text
    restarts = int(state["Restarts"])
    assert restarts >= 1, f"{STEPS} steps fitted into {minutes} min"
    assert text.count("stopped by SIGUSR1 after step") >= 1 and text.count("queued again") == restarts, text
    assert "resuming from step" in text and text.count("4 ranks on node1, node2, node3, node4") == restarts + 1
    assert (broken / "model.safetensors").is_file() and not (broken / "requeue").exists()
    expected, got = launches.losses(whole), launches.losses(broken)
    assert list(got) == list(range(1, STEPS + 1))  # no step lost, none twice
    assert list(got.values()) == pytest.approx(list(expected.values()), rel=1e-5)


def run_on_nodes(cluster, run: Path, arguments: list[str]) -> tuple[str, float]:
    """Trains under plain srun to the end; what it said, and the seconds until it had made a step."""
    began, log = time.monotonic(), run.with_suffix(".log")
    start = ["srun", "--mpi=pmi2", "--nodes", str(NODES), "--ntasks-per-node", "1", "--time", "50", sys.executable]
    with launches.started(cluster.on("head", *start, "launch/train.py", *arguments, **environ(cluster)), log) as (process, _):
        metrics = run / "metrics.jsonl"
        is_moving = lambda: process.poll() is not None or (metrics.is_file() and metrics.stat().st_size > 0)  # noqa: E731
        launches.wait_for(is_moving, timeout_s=400, what="the first step")
        first_step_s = time.monotonic() - began
        code = process.wait(timeout=900)
    assert code == 0, log.read_text()[-4000:]
    return log.read_text(), first_step_s


@pytest.mark.timeout(300)
def test_what_cannot_run_is_refused_before_the_queue(shards, tmp_path):
    """Neither needs a Slurm: the batch of 4 on 3 ranks, and no `--`."""

    def submit(*words: str) -> subprocess.CompletedProcess[str]:
        command, python = ["bash", SUBMIT, *words], {"PYTHON": sys.executable}
        return subprocess.run(
            command, cwd=launches.ROOT, env=launches.environment() | python, capture_output=True, text=True, timeout=200
        )

    run = tmp_path / "run"
    done = submit("--nodes", "3", "--dry-run", "--", *options(shards, run))
    assert done.returncode == 2 and not run.exists()
    assert len(done.stderr.splitlines()) == 1 and "global_batch = 4 cannot be divided over 3 ranks" in done.stderr
    done = submit("--nodes=2", "--gpus-per-node=h200:2", "-p", "gpu", "--time=1:00:00", "--dry-run", "--", *options(shards, run))
    assert done.returncode == 0, done.stderr
    command = done.stdout.split()
    assert command[0] == "sbatch" and command[command.index("launch/slurm/train.sbatch") + 1 :] == options(shards, run)
    for pair in (["--nodes", "2"], ["--ntasks-per-node", "2"], ["-p", "gpu"]):
        assert command[command.index(pair[0]) + 1] == pair[1]
    assert {"--gpus-per-node=h200:2", "--time=1:00:00"} <= set(command)
    done = submit("--nodes", "2", *options(shards, run))
    assert done.returncode == 2 and "no `--`" in done.stderr
