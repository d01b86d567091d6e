"""The same script under torchrun and mpirun: four ranks, each found by its launcher's variables, and the losses of one rank."""

import os
import subprocess
import sys
from pathlib import Path

import launches
import pytest

from mri_ds.errors import InputError
from mri_ds.training import launchers

BIN = Path(sys.executable).parent
SETS = ["training.steps=6", "training.log_every=1", "training.global_batch=4", "model.drop_path=0", "training.lr=0.0005"]
SETS += ["data.num_workers=0"]
SRUN = {"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1", "SLURM_STEP_NODELIST": "gpu[07-09,12]"}
PORT = launches.free_port()
STARTS = {
    # told the number of ranks of this node, DeepSpeed would leave a file of each in /dev/shm
    "torchrun": [
        "env",
        "LOCAL_SIZE=4",
        BIN / "torchrun",
        "--master-port",
        PORT,
        "--nproc-per-node",
        "4",
        "--",
    ],  # it has a --run-path
    "mpirun": [BIN / "mpirun", "-n", "4", sys.executable],
}


@pytest.fixture(scope="module")
def one_rank(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    launches.run([sys.executable, *script(shards, folder / "run"), "--ranks", "1"], folder / "log")
    return launches.losses(folder / "run")


def script(shards: Path, run: Path) -> list[str]:
    pairs = [x for item in SETS for x in ("--set", item)]
    return ["launch/train.py", "--ds_config", "ds_configs/tiny.json", "--data", str(shards), "--run", str(run), *pairs]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("launcher", STARTS)
def test_four_ranks_equal_one(one_rank, shards, tmp_path, launcher):
    start, run = [str(word) for word in STARTS[launcher]], tmp_path / "run"
    text = launches.run([*start, *script(shards, run)], tmp_path / "log", timeout_s=400)
    assert text.count("4 ranks on ") == 1 and f"4 ranks on {os.uname().nodename} x 4 (gloo)" in text
    got = launches.losses(run)
    assert list(got) == list(range(1, 7))
    assert list(got.values()) == pytest.approx(list(one_rank.values()), rel=1e-5)
    assert len(list(run.glob("**/events.out.tfevents.*"))) == 1
    assert not list(Path("/dev/shm").glob(f"deepspeed_*_{PORT}_*"))


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("library", "told"),
    [
        # no MPI at all; and one that knows nothing of the mpirun that started it, as with two MPIs on a machine
        ({"MPI4PY_LIBMPI": "/nowhere/libmpi.so"}, "started by mpirun, but cannot load MPI library"),
        ({}, "mpi4py sees 1: its library is another MPI's"),
    ],
)
def test_mpi_that_does_not_work_is_one_line(tmp_path, library, told):
    """Two processes with the variables of mpirun's ranks: the first of the node speaks, both end with 2."""
    command = [sys.executable, "launch/train.py", "--run", str(tmp_path / "never"), "--scale", "tiny"]
    started = []
    for rank in range(2):
        place = {"PMI_RANK": str(rank), "PMI_SIZE": "2", "MPI_LOCALRANKID": str(rank), **library}
        started.append(
            subprocess.Popen(
                command,
                env=launches.environment() | place,
                cwd=launches.ROOT,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        told_by = [process.communicate(timeout=200)[1].strip() for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [2, 2], told_by
    assert len(told_by[0].splitlines()) == 1 and told_by[0].startswith("error: MPI: ") and told in told_by[0]
    assert told_by[1] == ""


def test_places():
    """Which launcher counts where several left their variables. Sources: see `launchers`."""
    assert launchers.find({}) is None
    assert launchers.find({"RANK": "1", "WORLD_SIZE": "2", **SRUN}) is None  # deepspeed or torchrun inside a Slurm job
    assert launchers.find({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}) is None  # a batch script, which is no task
    assert launchers.find({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}) is None
    assert launchers.find(SRUN) == ("srun", 2, 4, 1)
    assert launchers.find({**SRUN, "PMI_RANK": "2", "PMI_SIZE": "4"}) == ("srun", 2, 4, 1)  # srun --mpi=pmi2
    inside = {**SRUN, "PMI_RANK": "5", "PMI_SIZE": "8", "MPI_LOCALRANKID": "3"}  # mpiexec whose daemons srun has started
    assert launchers.find(inside) == ("MPICH", 5, 8, 3)
    ours = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
    assert launchers.find({**SRUN, **ours}) == ("Open MPI", 3, 8, 0)


def test_srun_meets_at_the_first_node_of_the_step():
    environ = {
        **SRUN,
        "SLURM_JOB_ID": "123456",
        "SLURM_STEP_ID": "1",
        "SLURM_STEP_TASKS_PER_NODE": "1,2(x3)",
        "SLURM_NODEID": "3",
    }
    launchers.adopt(environ)
    wanted = {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu07", "MASTER_PORT": "23457"}
    wanted |= {"LOCAL_WORLD_SIZE": "2"}
    assert {name: environ[name] for name in wanted} == wanted
    again = {**SRUN, "SLURM_JOB_ID": "123456", "SLURM_STEP_ID": "1", "SLURM_RESTART_COUNT": "1", "CUDA_VISIBLE_DEVICES": "3"}
    launchers.adopt(again)
    assert again["MASTER_PORT"] == "23458"
    assert again["LOCAL_RANK"] == "0"  # bound to one GPU, it sees no other
    mine = {**SRUN, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4000"}
    launchers.adopt(mine)
    assert (mine["MASTER_ADDR"], mine["MASTER_PORT"]) == ("10.0.0.1", "4000")


@pytest.mark.parametrize(
    ("node_list", "host"),
    [("n1", "n1"), ("n1,n2", "n1"), ("n[001-004]", "n001"), ("a-b[3,7-9]x,c2", "a-b3x"), ("r[0-1]n[08-11]", "r0n08")],
)
def test_first_host(node_list, host):
    assert launchers.first_host(node_list) == host


def test_half_a_rendezvous_is_refused():
    with pytest.raises(InputError, match="MASTER_ADDR is not set"):
        launchers.check({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_PORT": "1"})
    launchers.check({})
    launchers.check({"RANK": "0"})


def test_mpi_with_a_given_meeting_point_needs_no_library():
    environ = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
    environ |= {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
    launchers.adopt(environ)
    assert (environ["RANK"], environ["WORLD_SIZE"], environ["LOCAL_RANK"]) == ("3", "8", "1")
