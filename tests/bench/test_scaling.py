"""The measurement of scaling: real ranks, arithmetic of the ratios; how fast the machine is, no test can know."""

import json

import pytest
from typer.testing import CliRunner

from mri_ds.bench.scaling import TARGETS, _judged, _weak


def test_ratios_of_given_times():
    rows = {"plain": {"samples_per_s": 4.0}, "zero3": {"samples_per_s": 3.8}, "zero0": {"samples_per_s": 4.2}}
    told = _judged(rows, {"zero3": 1.2, "zero0": 1.0, "save": 3.0})
    assert told["found"] == pytest.approx({"speed_of_plain": 0.95, "zero3_over_zero0": 1.2, "checkpoint_stall": 0.025})
    assert told["passed"] == dict.fromkeys(TARGETS, True)
    told = _judged({**rows, "plain": {"samples_per_s": 5.0}}, {"zero3": 1.3, "zero0": 1.0, "save": 13.0})
    assert told["passed"] == dict.fromkeys(TARGETS, False)
    weak = _weak({"weak2": {"samples_per_s": 3.0}}, {"weak1": 0.5, "weak2": 0.8, "product weak1": 0.1, "product weak2": 0.125}, 2)
    assert weak == {"ranks": 2, "samples_per_s": 3.0, "efficiency": 0.625, "machine": 0.8}


@pytest.mark.parametrize("ranks", ["2,4", "1,1", "one", ""])
def test_ranks_that_do_not_begin_with_one_are_refused(ranks):
    from mri_ds.cli.main import app

    done = CliRunner().invoke(app, ["bench", "scaling", "--ranks", ranks])
    assert done.exit_code == 2 and "begins with 1" in done.stderr


@pytest.mark.timeout(400)
def test_all_teams_train(tmp_path):
    """Six processes of `tiny`: one plain, two for each stage, and one that is alone."""
    import subprocess
    import sys
    from pathlib import Path

    command = [str(Path(sys.executable).parent / "mri-ds"), "bench", "scaling", "--scale", "tiny", "--patch", "16", "--json"]
    done = subprocess.run(
        [*command, "--steps", "1", "--rounds", "1", "--ranks", "1"],
        capture_output=True,
        text=True,
        timeout=380,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode in (0, 1), done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert {name: row["ranks"] for name, row in told["teams"].items()} == {"plain": 1, "zero3": 2, "zero0": 2}
    for row in told["teams"].values():
        assert row["samples_per_s"] * row["step_s"] == pytest.approx(4)
    found = told["found"]
    assert found["zero3_over_zero0"] == pytest.approx(told["teams"]["zero3"]["step_s"] / told["teams"]["zero0"]["step_s"])
    assert done.returncode == (0 if all(told["passed"].values()) else 1)
    assert told["weak"][0]["efficiency"] == told["weak"][0]["machine"] == 1
