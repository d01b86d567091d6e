"""What clusters do to a run, done to real ranks of `mri-ds train`. launch/FAULTS.md is the table of it.

Every case goes on with the run that the case before it broke; at the end each step has been told once, with the losses of a run
that nothing happened to.
"""

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import faults
import launches
import psutil
import pytest
from faults import SLOW, STEPS, TO_THE_END, Run, send

LAST = r"The same command goes on from the last checkpoint$"

pytestmark = pytest.mark.timeout(240 * SLOW)


@pytest.fixture(scope="module")
def undisturbed(shards, tmp_path_factory):
    return faults.undisturbed(shards, tmp_path_factory.mktemp("whole"))


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


# ---------------------------------------------------------------- four ranks


def test_rank_is_killed_then_one_is_stopped(four):
    with four.started(four.command(more=["--restarts", "1"])) as launch:
        launch.advance(4)
        send(launch.rank(2), "SIGKILL")
        launch.starts_again(rf"^error: rank 2 of 4 was killed by SIGKILL after step \d+\. {LAST}")
        launch.advance()
        send(launch.rank(0), "SIGSTOP")
        launch.ends(
            1, rf"^error: rank 0 of 4 was stopped by a signal \(SIGSTOP\) after step \d+: no sign of life for \d+ s\. {LAST}"
        )


def test_rank_is_killed_while_a_checkpoint_is_written_then_the_launcher_is_told_to_end(four):
    with four.started(four.command(more=["--restarts", "1"])) as launch:
        launch.advance(1)
        before, victim = four.checkpoints(), launch.rank(3)
        launches.wait_for(lambda: four.checkpoints() - before, timeout_s=60 * SLOW, what="a checkpoint to begin")
        send(victim, "SIGKILL")
        launch.starts_again(rf"^error: rank 3 of 4 was killed by SIGKILL after step \d+\. {LAST}")
        launch.advance()
        send(launch.process, "SIGTERM")
        launch.ends(143, r"^stopped by SIGTERM after step \d+: the same command goes on from there$")
    assert (four.folder / "checkpoints/latest").read_text() == f"step{four.told():06d}"


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


def test_rank_needs_more_memory_than_there_is_and_no_step_is_lost(four, undisturbed):
    """The kernel kills it, as on any cluster that limits the memory of a job; `--restarts` mends it by itself."""
    more = ["--restarts", "1", "--json"]
    with memory_group() as group, four.started(four.command("mri-ds", TO_THE_END, more=more)) as launch:
        launch.advance()
        group.confine(launch.rank(1))
        killed = r"was killed by SIGKILL \(out of memory: its cgroup allows 0\.\d\d GiB\)"
        launch.starts_again(rf"^error: rank 1 of 4 {killed} after step \d+\. {LAST}")
        text = launch.ends(0, r"^restart 1 of 1", within_s=200)
    assert json.loads(text.splitlines()[-1])["steps"] == STEPS
    four.check_complete(undisturbed)


# ---------------------------------------------------------------- two ranks


def test_rank_dies_before_the_ranks_have_met(two):
    with two.started(two.command()) as launch:
        send(launch.rank(1), "SIGABRT")
        launch.ends(1, rf"^error: rank 1 of 2 was killed by SIGABRT before the first step\. {LAST}")


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


def test_rank_may_not_allocate(shards, tmp_path):
    """A limit of the address space: no kill, but an exception in that rank alone. A smaller network would do with what it has."""
    run = Run(tmp_path / "run", shards, 2)
    larger = ["model.num_layers=2", "model.embed_dim=32", "model.expert_hidden=32", "model.use_kan=true", "data.patch=auto"]
    with run.started(run.command("mri-ds", *larger)) as launch:
        launch.advance()
        victim = launch.rank(1)
        resource.prlimit(victim.pid, resource.RLIMIT_AS, (victim.memory_info().vms,) * 2)
        where = f"see {run.folder}/faults/rank1\\.txt"
        launch.ends(1, rf"^error: rank 1 of 2 failed after step \d+: .*(memory|allocat).*; {where}\. {LAST}")
    assert "Traceback" in (run.folder / "faults/rank1.txt").read_text()


def test_data_worker_is_killed_then_one_hangs(two):
    """Where it hangs all hearts beat, and nothing moves: training.timeout_s ends it."""
    sets = ["data.num_workers=1", f"training.timeout_s={25 * SLOW}"]
    with two.started(two.command("mri-ds", *sets, more=["--restarts", "1"])) as launch:
        launch.advance(1)
        send(worker_of(launch.rank(1)), "SIGKILL")
        how = "(a process that loads data was killed|DataLoader worker .* is killed by signal: Killed)"
        launch.starts_again(rf"^error: rank 1 of 2 failed after step \d+: .*{how}.*{LAST}")
        launch.advance(1)
        send(worker_of(launch.rank(0)), "SIGSTOP")
        stuck = r"nothing moved for \d+ s \(.*timeout_s\): loader\.py line \d+, "
        launch.ends(1, rf"^error: rank 0 of 2 failed after step \d+: {stuck}.*{LAST}")


def test_conversion_is_killed(two):
    """In the middle of what it writes: the checkpoint stays as it was, and the same command then does it."""
    out = two.folder.parent / "universal"
    command = [str(Path(sys.executable).parent / "mri-ds"), "convert", str(two.folder), "--to", "universal", "--out", str(out)]
    before = contents(two.folder / "checkpoints")
    with two.started(command) as launch:
        wait_for_a_file(out.with_name("universal.part"))
        send(launch.process, "SIGKILL")
        assert launch.process.wait() == -9
    assert not out.exists() and any(out.with_name("universal.part").rglob("*.pt"))
    assert contents(two.folder / "checkpoints") == before
    launches.run(command, two.folder.parent / "log", timeout_s=120 * SLOW)
    assert (out / "zero").is_dir() and not out.with_name("universal.part").exists()


def test_change_of_ranks_is_killed_and_no_step_is_lost(two, undisturbed):
    """One rank goes on with what two saved. It is killed while it converts that; the same command then does it, to the end."""
    one = Run(two.folder, two.shards, 1)
    command = one.command("mri-ds", TO_THE_END)
    latest = two.folder / "checkpoints" / (two.folder / "checkpoints/latest").read_text()
    before = contents(latest)
    with one.started(command) as launch:
        wait_for_a_file(latest.with_suffix(".universal"))
        send(launch.process, "SIGKILL")
        assert launch.process.wait() == -9
    assert latest.with_suffix(".universal").exists() and contents(latest) == before
    with one.started(command) as launch:
        launch.ends(0, "resuming from step", within_s=200)
    assert not latest.with_suffix(".universal").exists()
    one.check_complete(undisturbed)


# ---------------------------------------------------------------- how it is done


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def wait_for_a_file(folder: Path) -> None:
    """Until something has been written into it. Polls fast: the whole of it is written within a second."""
    end = time.monotonic() + 120 * SLOW
    while not any(name.endswith(".pt") for _, _, names in os.walk(folder) for name in names):
        assert time.monotonic() < end, f"waited for a file in {folder}"
        time.sleep(0.002)


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
