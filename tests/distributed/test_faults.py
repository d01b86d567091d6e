"""What clusters do to a run, done to real ranks. launch/FAULTS.md is the table of it.

Every case goes on with the run that the case before it broke; at the end each step has been told once, with the losses of a run
that nothing happened to.
"""

import json
import os
import resource
import shutil
import socket
import subprocess
import time
from pathlib import Path

import launches
import psutil
import pytest
from faults import SLOW, STEPS, Run, send

LAST = r"The same command goes on from the last checkpoint$"

pytestmark = pytest.mark.timeout(240 * SLOW)


@pytest.fixture(scope="module")
def undisturbed(shards, tmp_path_factory):
    """{step: loss} of one rank that nothing happens to."""
    run = Run(tmp_path_factory.mktemp("whole") / "run", shards, 1)
    launches.run(run.command(), run.folder.parent / "log", timeout_s=240 * SLOW)
    return launches.losses(run.folder)


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """A disk of our own, in memory, that can be made to be full; an ordinary folder where nobody may mount."""
    folder = tmp_path_factory.mktemp("disk")
    is_mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4g", "mri_ds", folder], capture_output=True).returncode == 0
    yield folder
    if is_mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="module")
def four(shards, disk):
    return Run(disk / "run", shards, 4)


@pytest.fixture(scope="module")
def two(shards, tmp_path_factory):
    """A run whose data are its own, so that they may be broken."""
    folder = tmp_path_factory.mktemp("two")
    shutil.copytree(shards, folder / "shards")
    return Run(folder / "run", folder / "shards", 2)


# ---------------------------------------------------------------- four ranks, started by `mri-ds train`


def test_rank_is_killed(four):
    with four.started(four.command()) as launch:
        launch.advance(4)
        send(launch.rank(2), "SIGKILL")
        launch.ends(1, rf"^error: rank 2 of 4 was killed by SIGKILL after step \d+\. {LAST}")


def test_rank_is_stopped(four):
    with four.started(four.command()) as launch:
        launch.advance()
        send(launch.rank(0), "SIGSTOP")
        launch.ends(
            1, rf"^error: rank 0 of 4 was stopped by a signal \(SIGSTOP\) after step \d+: no sign of life for \d+ s\. {LAST}"
        )


def test_rank_needs_more_memory_than_there_is(four):
    """The kernel kills it, as on any cluster that limits the memory of a job."""
    with memory_group() as group, four.started(four.command()) as launch:
        launch.advance()
        group.confine(launch.rank(1))
        launch.ends(
            1,
            r"^error: rank 1 of 4 was killed by SIGKILL \(out of memory: its cgroup allows 0\.\d\d GiB\) after step \d+\.",
        )


def test_rank_is_killed_while_a_checkpoint_is_written(four):
    with four.started(four.command()) as launch:
        launch.advance(1)
        before, victim = four.checkpoints(), launch.rank(3)
        launches.wait_for(lambda: four.checkpoints() - before, timeout_s=60 * SLOW, what="a checkpoint to begin")
        send(victim, "SIGKILL")
        launch.ends(1, rf"^error: rank 3 of 4 was killed by SIGKILL after step \d+\. {LAST}")


def test_disk_is_full(four, disk):
    if not os.path.ismount(disk):
        pytest.skip("nobody may mount here: no disk to fill")
    with four.started(four.command()) as launch:
        launch.advance(1)
        latest = four.folder / "checkpoints/latest"
        launches.wait_for(latest.is_file, timeout_s=60 * SLOW, what="a good checkpoint")
        used = shutil.disk_usage(disk).used // 1024 + 256
        subprocess.run(["mount", "-o", f"remount,size={used}k", disk], check=True)
        try:
            what = rf"cannot write the checkpoint step\d+: No space|of 4 failed after step \d+: the disk of {four.folder} is full"
            launch.ends(1, rf"^error: rank \d ({what}).*\. {LAST}")
            assert (latest.parent / latest.read_text() / "manifest.json").is_file()
        finally:
            subprocess.run(["mount", "-o", "remount,size=4g", disk], check=True)


def test_launcher_is_told_to_end(four):
    with four.started(four.command()) as launch:
        launch.advance()
        send(launch.process, "SIGTERM")
        launch.ends(143, r"^stopped by SIGTERM after step \d+: the same command goes on from there$")
    assert (four.folder / "checkpoints/latest").read_text() == f"step{four.told():06d}"


def test_four_ranks_lost_no_step(four, undisturbed):
    """A last fault, which `--restarts` mends by itself."""
    with four.started(four.command(more=["--restarts", "1", "--json"])) as launch:
        launch.advance()
        send(launch.rank(1), "SIGABRT")
        text = launch.ends(0, rf"^error: rank 1 of 4 was killed by SIGABRT after step \d+\. {LAST}", within_s=200)
    assert "restart 1 of 1, from the last checkpoint" in text
    assert json.loads(text.splitlines()[-1])["steps"] == STEPS
    check_complete(four, undisturbed)


# ---------------------------------------------------------------- two ranks, started by `mri-ds train`


def test_rank_dies_before_the_ranks_have_met(two):
    with two.started(two.command()) as launch:
        send(launch.rank(1), "SIGKILL")
        launch.ends(1, rf"^error: rank 1 of 2 was killed by SIGKILL before the first step\. {LAST}")


def test_port_is_taken(two):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with two.started(two.command(), MASTER_PORT=port) as launch:
            launch.ends(1, rf"^error: rank 0 of 2 failed before the first step: .*{port}.*EADDRINUSE.*{LAST}")


def test_supervisor_is_killed(two):
    """Nobody is left to end the ranks: they save what they have and go."""
    with two.started(two.command()) as launch:
        launch.advance(4)
        send(launch.process, "SIGKILL")
        launch.ends(-9, r"^stopped by SIGTERM after step \d+: the same command goes on from there$")
    assert (two.folder / "checkpoints/latest").read_text() == f"step{two.told():06d}"


def test_ctrl_c_twice(two):
    with two.started(two.command()) as launch:
        launch.advance()
        victim = launch.rank(1)
        victim.suspend()  # so that the step does not end, as where a file system hangs
        send(launch.process, "SIGINT")
        time.sleep(1)
        assert launch.process.poll() is None
        send(launch.process, "SIGINT")
        launch.ends(130, r"^error: stopped by a second SIGINT, within a step$", within_s=10)


def test_shard_breaks_under_one_rank(two):
    """A subject that only one rank reads next: that rank says so, the other is not left waiting."""
    with broken_subject(two.shards), two.started(two.command()) as launch:
        text = launch.ends(2, r"^error: .*(checksum|corrupt|cannot be read|damaged)", within_s=120)
    assert "Traceback" not in text


def test_data_vanish_while_the_ranks_start(two):
    away = two.shards.with_name("away")
    with two.started(two.command()) as launch:
        launch.rank(1)
        two.shards.rename(away)
        launch.ends(2, rf"^error: {two.shards}")
    away.rename(two.shards)


def test_rank_may_not_allocate(two):
    """A limit of the address space: no kill, but an exception in that rank alone."""
    with two.started(two.command()) as launch:
        launch.advance()
        victim = launch.rank(1)
        resource.prlimit(victim.pid, resource.RLIMIT_AS, (victim.memory_info().vms,) * 2)
        launch.ends(
            1, rf"^error: rank 1 of 2 failed after step \d+: .*(memory|allocat).*; see {two.folder}/faults/rank1\.txt\. {LAST}"
        )
    assert "Traceback" in (two.folder / "faults/rank1.txt").read_text()


def test_data_worker_is_killed(two):
    with two.started(two.command("mri-ds", "data.num_workers=1")) as launch:
        launch.advance(1)
        send(worker_of(launch.rank(1)), "SIGKILL")
        launch.ends(1, rf"^error: rank 1 of 2 failed after step \d+: .*a process that loads data was killed, .*{LAST}")


def test_data_worker_hangs(two):
    """All hearts beat, and nothing moves: training.timeout_s ends it."""
    with two.started(two.command("mri-ds", "data.num_workers=1", f"training.timeout_s={25 * SLOW}")) as launch:
        launch.advance(1)
        send(worker_of(launch.rank(0)), "SIGSTOP")
        launch.ends(
            1,
            rf"^error: rank 0 of 2 failed after step \d+: nothing moved for \d+ s \(.*timeout_s\): loader\.py line \d+, .*{LAST}",
        )


# ---------------------------------------------------------------- two ranks under launchers that do not watch them


@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun"])
def test_rank_is_killed_under(launcher, two):
    with two.started(two.command(launcher)) as launch:
        launch.advance(1)
        send(launch.rank(1), "SIGKILL")
        launch.ends(None, r"error: rank 0 ended after step \d+: lost rank 1 ")


def test_rank_is_stopped_under_deepspeed(two):
    with two.started(two.command("deepspeed")) as launch:
        launch.advance(1)
        send(launch.rank(1), "SIGSTOP")
        launch.ends(None, r"error: rank 0 ended after step \d+: lost rank 1 ")


@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun"])
def test_launcher_is_told_to_end_under(launcher, two):
    """`deepspeed` goes at once and leaves its ranks: they notice."""
    with two.started(two.command(launcher)) as launch:
        launch.advance(1)
        send(launch.process, "SIGTERM")
        launch.ends(None, r"^stopped by SIGTERM after step \d+: the same command goes on from there$")
    assert (two.folder / "checkpoints/latest").read_text() == f"step{two.told():06d}"


def test_launchers_own_child_is_killed_under_deepspeed(two):
    """`deepspeed` then returns 0, which is why a run is judged by its results."""
    with two.started(two.command("deepspeed")) as launch:
        launch.advance(1)
        child = next(p for p in two.processes() if "deepspeed.launcher.launch" in " ".join(p.cmdline()))
        send(child, "SIGKILL")
        launch.ends(0, r"^stopped by SIGTERM after step \d+: the same command goes on from there$")
    assert not (two.folder / "model.safetensors").exists()


def test_two_ranks_lost_no_step(two, undisturbed):
    with two.started(two.command()) as launch:
        launch.ends(0, "resuming from step", within_s=200)
    check_complete(two, undisturbed)


# ---------------------------------------------------------------- how it is done


def check_complete(run: Run, undisturbed: dict[int, float]) -> None:
    steps = [json.loads(line)["step"] for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1))
    assert list(launches.losses(run.folder).values()) == pytest.approx(list(undisturbed.values()), rel=1e-5)
    assert (run.folder / "model.safetensors").is_file()


def worker_of(rank: psutil.Process) -> psutil.Process:
    return launches.wait_for(lambda: next(iter(rank.children()), None), timeout_s=30, what="a data worker")


class memory_group:
    """A memory cgroup below our own, version 1 or 2; skips where none can be made."""

    def __enter__(self) -> "memory_group":
        lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
        v1 = [Path("/sys/fs/cgroup/memory") / path.lstrip("/") for _, names, path in lines if "memory" in names.split(",")]
        v2 = [Path("/sys/fs/cgroup") / path.lstrip("/") for _, names, path in lines if not names]
        self.folder = (v1 or v2)[0] / f"mri_ds_{os.getpid()}"
        self.names = ("memory.usage_in_bytes", "memory.limit_in_bytes") if v1 else ("memory.current", "memory.max")
        try:
            self.folder.mkdir()
        except OSError as err:
            pytest.skip(f"no memory cgroup can be made here: {err}")
        if not (self.folder / self.names[1]).exists():
            self.folder.rmdir()
            pytest.skip("no memory cgroup can be made here: the controller is not delegated")
        return self

    def confine(self, process: psutil.Process) -> None:
        """Takes the process in, and then leaves it 128 KiB more than it has taken since."""
        (self.folder / "cgroup.procs").write_text(str(process.pid))
        time.sleep(2)
        usage, limit = (self.folder / name for name in self.names)
        limit.write_text(str(int(usage.read_text()) + 2**17))

    def __exit__(self, *exc: object) -> None:
        launches.wait_for(lambda: not (self.folder / "cgroup.procs").read_text(), timeout_s=30, what="the group to be empty")
        self.folder.rmdir()


class broken_subject:
    """For a while, 4 KiB in one shard are other ones."""

    def __init__(self, shards: Path) -> None:
        self.path = sorted(shards.glob("train*.tar"))[0]

    def __enter__(self) -> None:
        self.good = self.path.read_bytes()
        middle = len(self.good) // 3
        self.path.write_bytes(
            self.good[:middle] + bytes(255 - b for b in self.good[middle : middle + 4096]) + self.good[middle + 4096 :]
        )

    def __exit__(self, *exc: object) -> None:
        self.path.write_bytes(self.good)
