"""A cable of four machines is pulled, then a machine is switched off: every rank on the others ends and says who is lost.

With the cable plugged in the same command goes on, and then on the two machines whose names are left in the hostfile.
"""

import subprocess
import sys
from pathlib import Path

import faults
import pytest
from cluster import nodes, why_not
from faults import SLOW, TO_THE_END, Run

NODES = 4
STEPS = 16
SETS = [f"training.steps={STEPS}"]

pytestmark = pytest.mark.skipif(bool(why_not("pdsh")), reason=why_not("pdsh"))


@pytest.mark.timeout(600 * SLOW)
def test_cable_is_pulled_then_a_machine_is_off(shards, tmp_path):
    run, hostfile = Run(tmp_path / "run", shards, NODES), tmp_path / "hostfile"

    def command(cluster, count: int, *sets: str) -> list[str]:
        hostfile.write_text("".join(f"node{i + 1} slots=1\n" for i in range(count)))
        launcher = [Path(sys.executable).parent / "deepspeed", "--num_nodes", str(count), "--hostfile", hostfile]
        return cluster.on("head", *launcher, "launch/train.py", *run.options(*SETS, *sets), HOME=str(tmp_path))

    with nodes(tmp_path / "cluster", NODES) as cluster:
        on_all = command(cluster, NODES)
        with run.started(on_all) as launch:
            launch.advance(4)
            subprocess.run([*on_all[:3], "cut", "node3"], check=True, timeout=60)
            check_told(launch)
        cut = (run.folder / "faults/rank2.txt").read_text()  # its own words had no way out
        assert "Current thread" in cut or "Thread" in cut
        subprocess.run([*on_all[:3], "plug", "node3"], check=True, timeout=60)
        with run.started(on_all) as launch:
            launch.advance(4)  # past a checkpoint, whatever was left before
            subprocess.run([*on_all[:3], "halt", "node3"], check=True, timeout=60)
            check_told(launch)
        with run.started(command(cluster, 2, TO_THE_END)) as launch:
            launch.ends(0, "resuming from step", within_s=200)
    run.check_complete(faults.undisturbed(shards, tmp_path / "alone", *SETS))


def check_told(launch: faults.Launch) -> None:
    text = launch.ends(None, r"error: rank 0 ended after step \d+: lost rank 2 ")
    assert "node2: error: rank 1 ended" in text and "node4: error: rank 3 ended" in text
