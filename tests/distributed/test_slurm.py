"""A real Slurm on four machines: a job that its time limit stops is queued again and ends as if nothing had been; so does one
that is cancelled and started again. The curve that all are compared with is that of one rank which nothing happened to.
"""

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import launches
import psutil
import pytest
from cluster import nodes, why_not
from cluster.slurm import Slurm
from faults import SLOW
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

NODES, STEPS = 4, 40
SETS = [f"training.steps={STEPS}", "training.log_every=1", "training.global_batch=4", "training.checkpoint_every=1000"]
SETS += ["training.image_every=1000", "training.validate_every=0", "data.num_workers=0", "data.patch=[16,16,16]"]
SETS += ["model.num_layers=1", "model.embed_dim=24", "model.num_heads=2", "model.expert_hidden=16", "model.stem_channels=4"]
SETS += ["model.drop_path=0", "training.lr=0.0002"]  # any number of ranks gives the same
HERE = launches.ROOT
SUBMIT, SCRIPT = "launch/slurm/submit.sh", "launch/slurm/train.sbatch"
REASON = why_not("munged", "slurmctld", "slurmd", "srun", "sbatch")
needs_slurm = pytest.mark.skipif(bool(REASON), reason=REASON)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with nodes(tmp_path_factory.mktemp("machines") / "cluster", NODES) as cluster:
        yield Slurm(cluster, PYTHON=sys.executable)


@pytest.fixture(scope="module")
def uninterrupted(shards, tmp_path_factory):
    """The losses of one rank that no Slurm has started; run when they are first asked for, which may be while a job waits."""
    folder = tmp_path_factory.mktemp("one")

    @functools.cache
    def losses() -> dict[int, float]:
        one = [sys.executable, "launch/train.py", *options(shards, folder / "run"), "--ranks", "1"]
        launches.run(one, folder / "log", timeout_s=300 * SLOW)
        return launches.losses(folder / "run")

    return losses


def options(shards: Path, run: Path) -> list[str]:
    pairs = [x for item in SETS for x in ("--set", item)]
    return ["--ds_config", "ds_configs/tiny.json", "--data", str(shards), "--run", str(run), *pairs]


@needs_slurm
@pytest.mark.timeout(900 * SLOW)
def test_a_job_that_exceeds_its_time_limit_requeues_itself_and_ends_the_same(slurm, uninterrupted, shards, tmp_path):
    run = tmp_path / "run"
    container = ["--container-prefix", "unshare --mount --ipc"]  # namespaces of its own, as container runtimes make them
    told = slurm.ask("bash", SUBMIT, "--nodes", str(NODES), "--time", "50", *container, "--", *options(shards, run))
    job = re.match(r"job (\d+): 4 ranks on 4 nodes", told)[1]
    log = run / f"slurm-{job}.log"
    assert f"tail -F {log}" in told
    wait_for_step(slurm, job, run, 3)
    exceed_the_limit(slurm, job, meanwhile=uninterrupted)
    slurm.wait_for(job, lambda state: state["Restarts"] == "1", timeout_s=120 * SLOW)
    slurm.ask("scontrol", "update", f"JobId={job}", "TimeLimit=50")  # once is enough
    stopped_at = int((run / "checkpoints/latest").read_text().removeprefix("step"))
    assert 3 <= stopped_at < STEPS
    state, text = slurm.wait_for_end(job, timeout_s=240 * SLOW), log.read_text()
    assert (state["JobState"], state["ExitCode"], state["Restarts"]) == ("COMPLETED", "0:0", "1"), text
    said = (
        f"train.sbatch: start 0 of job {job} on node[1-4], last checkpoint: none",
        "4 ranks on node1, node2, node3, node4 (gloo)",
        f"stopped by SIGUSR1 after step {stopped_at}: the same command goes on from there",
        f"train.sbatch: time is nearly up after step{stopped_at:06d}: queued again",
        f"train.sbatch: start 1 of job {job} on node[1-4], last checkpoint: step{stopped_at:06d}",
        f"resuming from step {stopped_at} of {STEPS}",
    )
    assert [text.count(line) for line in said] == [1, 2, 1, 1, 1, 1], text
    assert (run / "model.safetensors").is_file() and not (run / "requeue").exists()
    assert_same(run, uninterrupted())


@needs_slurm
@pytest.mark.timeout(900 * SLOW)
def test_a_cancelled_job_saves_its_step_and_the_same_command_goes_on(slurm, uninterrupted, shards, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    script = ["--nodes", "2", "--output", log, SCRIPT, *options(shards, run)]
    job = slurm.ask("sbatch", "--parsable", *script).strip()
    wait_for_step(slurm, job, run, 3)
    slurm.ask("scancel", job)
    state = slurm.wait_for_end(job, timeout_s=120 * SLOW)
    assert state["JobState"] == "CANCELLED" and state["Restarts"] == "0", log.read_text()
    assert [process for process in psutil.process_iter() if str(run) in " ".join(command_of(process))] == []
    step = int((run / "checkpoints/latest").read_text().removeprefix("step"))
    text = log.read_text()
    assert text.count(f"stopped by SIGTERM after step {step}: the same command goes on from there") == 1, text
    assert text.count(f"last checkpoint: step{step:06d}; the same command goes on from there") == 1, text
    assert not (run / "requeue").exists() and not (run / "model.safetensors").exists()
    sent = min(Slurm.times(slurm.folder / "slurmd.node1.log", f"Sent signal 15 to StepId={job}.0"))
    ended = [event for event in EventAccumulator(str(run)).Reload().Scalars("loss") if event.wall_time > sent]
    assert step < STEPS and len(ended) <= 1, (sent, ended)  # the step that was running, of which rank 0 tells

    # any way to start goes on with the same run: without a batch script, and with MPI's variables beside Slurm's
    again = ["srun", "--mpi=pmi2", "--nodes", "2", "--ntasks-per-node", "1", "--time", "50", sys.executable, "launch/train.py"]
    told = launches.run(slurm.on_head(*again, *options(shards, run)), tmp_path / "again.log", timeout_s=300 * SLOW)
    assert "2 ranks on node1, node2 (gloo)" in told and f"resuming from step {step} of {STEPS}" in told
    assert_same(run, uninterrupted())


@needs_slurm
@pytest.mark.timeout(300 * SLOW)
@pytest.mark.parametrize(
    ("binding", "seen"),
    [
        (["--gpus-per-node", "2"], [["0", "0,1"], ["1", "0,1"]]),  # each task sees all, and takes the one of its local rank
        (["--gpus-per-task", "1"], [["0", "0"], ["0", "1"]]),  # each sees its own alone, which is number 0 to it
    ],
)
def test_each_task_takes_its_own_gpu(slurm, binding, seen):
    """Slurm deals out what stands in gres.conf, here device files that are no GPUs: what it tells the tasks is real."""
    program = (
        "from mri_ds.training import launchers; import os; launchers.adopt(); "
        "print(*(os.environ[name] for name in ('RANK', 'LOCAL_RANK', 'CUDA_VISIBLE_DEVICES', 'LOCAL_WORLD_SIZE')))"
    )
    step = ["srun", "--nodes", "2", "--ntasks", "4", "--ntasks-per-node", "2", *binding, sys.executable, "-c", program]
    told = sorted(line.split() for line in slurm.ask("env", "--unset=CUDA_VISIBLE_DEVICES", *step).splitlines())
    assert told == [[str(rank), *seen[rank % 2], "2"] for rank in range(4)]


@pytest.mark.timeout(300 * SLOW)
def test_what_cannot_run_is_refused_before_the_queue(shards, tmp_path):
    """Needs no Slurm: the batch of 4 on 3 ranks, and no `--`."""
    run = tmp_path / "run"
    done = submit("--nodes", "3", "--dry-run", "--", *options(shards, run))
    assert done.returncode == 2 and not run.exists()
    assert len(done.stderr.splitlines()) == 1 and "global_batch = 4 cannot be divided over 3 ranks" in done.stderr
    done = submit("--nodes", "2", *options(shards, run))
    assert done.returncode == 2 and "no `--`" in done.stderr


@pytest.mark.timeout(300 * SLOW)
@pytest.mark.parametrize(
    ("given", "of_sbatch", "of_srun", "before_python"),
    [
        (
            ["--nodes=2", "--gpus-per-node=h200:2", "-p", "gpu", "--container-prefix=apptainer exec --nv /images/mri.sif"],
            ["--nodes 2", "--ntasks-per-node 2", "--gpus-per-node=h200:2", "-p gpu"],
            [],
            "apptainer exec --nv /images/mri.sif ",
        ),
        (
            ["--gres", "gpu:a100:4", "-c", "6", "--time=1:00:00", "--container-image", "nvcr.io#nvidia/pytorch:26.05"],
            ["--nodes 1", "--ntasks-per-node 4", "--gres=gpu:a100:4", "--cpus-per-task=6", "--time=1:00:00"],
            ["--cpus-per-task=6", "--container-image=nvcr.io#nvidia/pytorch:26.05", f"--container-mounts={HERE}:{HERE}"],
            "",
        ),
    ],
)
def test_dry_run_shows_both_commands(shards, tmp_path, given, of_sbatch, of_srun, before_python):
    """What Slurm would be asked for, and what its job would start: one rank a GPU, containers around Python alone."""
    arguments = options(shards, tmp_path / "run")
    done = submit(*given, "--dry-run", "--", *arguments)
    assert done.returncode == 0, done.stderr
    sbatch, srun = (line.replace("\\", "") for line in done.stdout.splitlines())
    assert sbatch.startswith("sbatch ") and sbatch.endswith(f" {SCRIPT} {' '.join(arguments)} ")
    assert all(f" {words} " in sbatch for words in of_sbatch), sbatch
    assert srun.startswith("srun --kill-on-bad-exit=1 ")
    assert srun.endswith(f" {before_python}{sys.executable} -u launch/train.py {' '.join(arguments)} ")
    assert all(f" {words} " in srun for words in of_srun), srun
    assert ("--container-image" in srun) == any("container-image" in word for word in given)


def submit(*words: str) -> subprocess.CompletedProcess[str]:
    command, python = ["bash", SUBMIT, *words], {"PYTHON": sys.executable}
    return subprocess.run(
        command, cwd=launches.ROOT, env=launches.environment() | python, capture_output=True, text=True, timeout=200 * SLOW
    )


def exceed_the_limit(slurm: Slurm, job: str, *, meanwhile) -> None:
    """The job has a minute left when Slurm next looks at the time limits, and is told, as `--signal` asks.

    Until then it is suspended, so that a short run does not end before, and `meanwhile` is done.
    """
    while not slurm.was_warned(job):
        slurm.ask("scontrol", "suspend", job)
        meanwhile()
        looks = slurm.wait_to_be_before_a_look()
        slurm.ask("scontrol", "resume", job)
        slurm.end_in(job, 60)
        slurm.wait_for_a_look(looks)


def wait_for_step(slurm: Slurm, job: str, run: Path, step: int) -> None:
    metrics = run / "metrics.jsonl"
    slurm.wait_for(job, lambda state: state["JobState"] != "PENDING", timeout_s=60 * SLOW)
    launches.wait_for(
        lambda: metrics.is_file() and len(metrics.read_text().splitlines()) >= step, timeout_s=240 * SLOW, what=f"step {step}"
    )


def command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has ended meanwhile
        return []


def assert_same(run: Path, expected: dict[int, float]) -> None:
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1))  # no step lost, none twice
    assert list(launches.losses(run).values()) == pytest.approx(list(expected.values()), rel=1e-5)
