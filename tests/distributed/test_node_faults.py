"""The cable of one of four machines is pulled: every rank on every machine ends, and the same command goes on once it is back."""

import json
import subprocess
import sys
from pathlib import Path

import launches
import pytest
from cluster import nodes, why_not
from faults import SLOW, Run

NODES = 4
STEPS = 16
SETS = [f"training.steps={STEPS}"]

pytestmark = pytest.mark.skipif(bool(why_not("pdsh")), reason=why_not("pdsh"))


@pytest.mark.timeout(400 * SLOW)
def test_cable_is_pulled(shards, tmp_path):
    run, alone = Run(tmp_path / "run", shards, NODES), Run(tmp_path / "alone", shards, 1)
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("".join(f"node{i + 1} slots=1\n" for i in range(NODES)))
    launcher = [Path(sys.executable).parent / "deepspeed", "--num_nodes", str(NODES), "--hostfile", hostfile, "launch/train.py"]
    with nodes(tmp_path / "cluster", NODES) as cluster:
        command = cluster.on("head", *launcher, *run.options(*SETS), HOME=str(tmp_path))
        with run.started(command) as launch:
            launch.advance(4)
            subprocess.run([*command[:3], "cut", "node3"], check=True, timeout=60)
            text = launch.ends(None, r"error: rank 0 ended after step \d+: lost rank 2 ")
            assert "node2: error: rank 1 ended" in text and "node4: error: rank 3 ended" in text
        cut = (run.folder / "faults/rank2.txt").read_text()  # its own words had no way out
        assert "Current thread" in cut or "Thread" in cut
        subprocess.run([*command[:3], "plug", "node3"], check=True, timeout=60)
        with run.started(command) as launch:
            launch.ends(0, "resuming from step", within_s=200)
    launches.run(alone.command("mri-ds", *SETS), tmp_path / "log.alone", timeout_s=240 * SLOW)
    steps = [json.loads(line)["step"] for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1))
    expected = launches.losses(alone.folder)
    assert list(launches.losses(run.folder).values()) == pytest.approx(list(expected.values()), rel=1e-5)
