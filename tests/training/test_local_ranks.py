"""How many ranks a machine takes, and what each is told."""

import os
from pathlib import Path

import pytest

from mri_ds.training import local_ranks


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A machine with the given NUMA nodes, as Linux lists them, and this process free to use all of their cores."""

    def make(*nodes: str, gpus: int = 0) -> None:
        for number, cores in enumerate(nodes):
            (tmp_path / f"node{number}").mkdir()
            (tmp_path / f"node{number}/cpulist").write_text(cores + "\n")
        monkeypatch.setattr(local_ranks, "NUMA", tmp_path)
        monkeypatch.setattr(local_ranks, "num_gpus", lambda: gpus)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return make


def test_one_rank_per_gpu_as_far_as_they_share_the_batch(machine) -> None:
    machine("0-7", gpus=8)
    assert [local_ranks.choose(batch) for batch in (16, 8, 6, 4, 1)] == [8, 8, 6, 4, 1]


def test_one_rank_per_numa_node_each_on_its_own_cores(machine) -> None:
    machine("0-1,4", "2-3,5-7", "8-11")  # of the third one this process may use nothing, and a node of memory alone has no cores
    assert local_ranks.choose(global_batch=4) == 2
    assert [local_ranks.cores_of(rank, 2) for rank in (0, 1)] == [{0, 1, 4}, {2, 3, 5, 6, 7}]
    assert [local_ranks.environment(r, 2, 1, on_gpu=False)["OMP_NUM_THREADS"] for r in (0, 1)] == ["3", "5"]


def test_more_ranks_than_nodes_share_all_cores(machine) -> None:
    machine("0-7")
    assert local_ranks.choose(global_batch=4) == 1
    assert local_ranks.cores_of(3, 4) == set(range(8))
    assert local_ranks.environment(3, 4, 29500, on_gpu=False)["OMP_NUM_THREADS"] == "2"


def test_what_a_rank_is_told(machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine("0-7")
    monkeypatch.setenv("RANK", "7")  # of another run, in the same shell
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    told = local_ranks.environment(1, 2, 29501, on_gpu=False)
    assert told["RANK"] == told["LOCAL_RANK"] == "1" and told["WORLD_SIZE"] == "2"
    assert (told["MASTER_ADDR"], told["MASTER_PORT"]) == ("127.0.0.1", "29501")
    assert told["DS_ACCELERATOR"] == "cpu" and told["OMP_NUM_THREADS"] == "5"
    assert "DS_ACCELERATOR" not in local_ranks.environment(1, 2, 29501, on_gpu=True) or os.environ.get("DS_ACCELERATOR")


@pytest.mark.parametrize(
    ("environ", "is_launched"),
    [
        ({}, False),
        ({"RANK": "0", "WORLD_SIZE": "1"}, True),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, False),  # a batch script, which is no task of a step
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, False),  # an interactive shell by srun --pty
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, True),
        ({"PMI_SIZE": "4", "PMI_RANK": "3"}, True),
    ],
)
def test_ranks_of_a_launcher_start_no_ranks(environ: dict[str, str], is_launched: bool) -> None:
    assert local_ranks.is_started_by_a_launcher(environ) == is_launched
