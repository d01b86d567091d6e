"""What clusters do to a run under launchers that do not watch their ranks: the ranks do it. launch/FAULTS.md is the table of it.

Every case goes on with the run that the case before it broke, as in test_faults.py.
"""

import faults
import pytest
from faults import SLOW, TO_THE_END, Run, send

pytestmark = pytest.mark.timeout(240 * SLOW)


@pytest.fixture(scope="module")
def two(shards, tmp_path_factory):
    return Run(tmp_path_factory.mktemp("two") / "run", shards, 2)


@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun"])
def test_rank_is_killed(launcher, two):
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
def test_launcher_is_told_to_end(launcher, two):
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


def test_no_step_was_lost(two, shards, tmp_path):
    one = Run(two.folder, shards, 1)  # cheaper than two, and the same
    with one.started(one.command("mri-ds", TO_THE_END)) as launch:
        launch.ends(0, "resuming from step", within_s=200)
    one.check_complete(faults.undisturbed(shards, tmp_path))
    with one.started(one.command("mri-ds", "training.lr=0.5")) as launch:  # what another configuration left is not gone on from
        launch.ends(2, "^error: .*another configuration")
