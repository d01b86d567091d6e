"""Real processes that run out of real memory: told, survived, halved, and trained all the same."""

import json
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mri_ds.config import TaskConfig, load_config
from mri_ds.errors import RunError
from mri_ds.training.room import _left_in_groups
from mri_ds.training.trial import Trial, shortage, speaks_of_memory

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
SETS = ["model.num_layers=1", "model.token_stride=[8,8,8]", "data.patch=[48,48,48]", "training.global_batch=12"]
# At 48^3 voxels a subject takes about 50 MiB; a process that has imported everything 220 MiB.

CHOOSE = """
import json, sys
from pathlib import Path
from mri_ds.config import TaskConfig, load_config
from mri_ds.training import ds_config, micro_batch

micro_batch.PLENTY = 10**9  # plan and try, however much is free: `ulimit -d` is a limit that the plan does not know
config = load_config(scale="tiny", overrides=sys.argv[3:])
config.tasks = {"ball": TaskConfig(kind="segmentation", classes=["background", "ball"])}
raw = ds_config.read(Path(sys.argv[1]), ["activation_checkpointing.level=none"])
resolved = ds_config.resolve(raw, config, world_size=1)
print(micro_batch.choose(raw, resolved, config, Path(sys.argv[2]))["train_micro_batch_size_per_gpu"])
"""


def trial_of(micro, *, held=0):
    config = load_config(scale="tiny", overrides=["data.patch=[16,16,16]", "model.num_layers=1", "model.token_stride=[8,8,8]"])
    config.tasks = {"ball": TaskConfig(kind="segmentation", classes=["background", "ball"])}
    return Trial(config.model_dump_json(), micro, "fp32", "none", held=held, update=0)


def environment():
    gone = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {key: value for key, value in os.environ.items() if key not in gone}
    return kept | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}


@pytest.mark.timeout(200)
def test_an_allocator_that_raises_halves(tmp_path):
    """Twelve subjects need over 760 MiB of data, six less than 500: under `ulimit -d` of 630 twelve raise in the child."""
    done = subprocess.run(
        [sys.executable, "-c", CHOOSE, str(ROOT / "ds_configs/tiny.json"), str(tmp_path), *SETS],
        capture_output=True,
        text=True,
        env=environment(),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (630 * MIB, 630 * MIB)),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] == "6"
    assert done.stderr.splitlines()[-1] == "micro-batch 12 does not fit: out of memory"
    told = json.loads((tmp_path / "micro_batch.json").read_text())
    assert told["micro_batch"] == 6 and told["tried"] == [{"micro_batch": 12, "outcome": "out of memory"}]


@pytest.fixture
def memory_group():
    """A memory cgroup below this process's own, of version 1 or 2, that allows 1,600 MiB."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    v1 = [Path("/sys/fs/cgroup/memory") / path.lstrip("/") for _, names, path in lines if "memory" in names.split(",")]
    v2 = [Path("/sys/fs/cgroup") / path.lstrip("/") for _, names, path in lines if not names]
    folder = (v1 or v2)[0] / f"mri_ds_trial_{os.getpid()}"
    if not os.access(folder.parent, os.W_OK):
        pytest.skip(f"no memory cgroup can be made in {folder.parent}")
    folder.mkdir()
    (folder / ("memory.limit_in_bytes" if v1 else "memory.max")).write_text(str(1600 * MIB))
    yield folder
    folder.rmdir()


NEIGHBOUR = """
import sys, time
from pathlib import Path

def is_trial(pid):
    try:
        return b"mri_ds.training.trial" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False

while not any(map(is_trial, (Path(sys.argv[1]) / "cgroup.procs").read_text().split())):
    time.sleep(0.05)
held = b"1" * (650 << 20)
print("grown", flush=True)
sys.stdin.read()
"""


@pytest.mark.timeout(300)
def test_a_trial_that_the_kernel_kills_halves_and_the_run_goes_on(shards, tmp_path, memory_group):
    """A neighbour takes 650 MiB when the first trial begins, so the plan was right and twelve do not fit all the same.

    The kernel's out-of-memory killer takes the trial, and neither the rank nor the neighbour, although both are larger.
    """

    def enter():
        (memory_group / "cgroup.procs").write_text(str(os.getpid()))

    neighbour = subprocess.Popen(
        [sys.executable, "-c", NEIGHBOUR, str(memory_group)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=enter,
    )
    try:
        sets = [part for one in [*SETS, "training.steps=1", "data.num_workers=0"] for part in ("--set", one)]
        command = [str(Path(sys.executable).parent / "mri-ds"), "train", "--scale", "tiny", "--ranks", "1", *sets]
        done = subprocess.run(
            [*command, "--ds", "activation_checkpointing.level=none", "--data", str(shards), "--run", str(tmp_path / "run")],
            capture_output=True,
            text=True,
            env=environment(),
            preexec_fn=enter,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert neighbour.poll() is None and neighbour.stdout.readline() == "grown\n"
    finally:
        neighbour.communicate("")
    told = json.loads((tmp_path / "run/micro_batch.json").read_text())
    assert told["micro_batch"] == 6 and [one["micro_batch"] for one in told["tried"]] == [12]
    assert told["tried"][0]["outcome"].startswith("out of memory: its cgroup allows 1.56 GiB")
    resolved = json.loads((tmp_path / "run/ds_config.json").read_text())
    assert (resolved["train_micro_batch_size_per_gpu"], resolved["gradient_accumulation_steps"]) == (6, 2)
    assert (tmp_path / "run/model.safetensors").is_file()


def test_another_failure_is_no_shortage():
    assert shortage(trial_of(1)) == ""
    with pytest.raises(RunError, match="trying micro-batch 1 failed: "):
        shortage(replace(trial_of(1), precision="fp7"))
    assert not speaks_of_memory(RuntimeError("shapes (3, 4) and (5, 6) cannot be multiplied"))
    assert speaks_of_memory(RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"))
    assert speaks_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."))


def test_room_is_the_least_that_any_group_leaves(tmp_path):
    """Version 2: the job's group leaves 300, the node's 100 + 50 of cache; a group without a limit does not count."""
    own = tmp_path / "cgroup"
    own.write_text("0::/node/job/step\n")
    told = {"node": ("1000", 900, 50), "node/job": ("500", 200, 0), "node/job/step": ("max", 150, 0)}
    for name, (limit, usage, cache) in told.items():
        folder = tmp_path / "root" / name
        folder.mkdir(parents=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{usage}\n")
        (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cache}\n")
    assert sorted(_left_in_groups(own, tmp_path / "root")) == [150, 300]
