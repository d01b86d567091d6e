"""What upstream has been seen to do wrong, done on purpose on two real ranks: every row of it must miss."""

import json
from pathlib import Path

import launches
import pytest

from mri_ds.training.parity.case import Case
from mri_ds.training.parity.launch import run_ranks, wait_for_ranks, write_plain_runs

#                 zero ep ranks recompute accumulation
CASES = {
    "experts_times_ep": Case(3, 2, 2, True, 1, "sgd", "fp32"),
    "norm_of_own_part": Case(2, 2, 2, False, 1, "sgd", "fp32"),
    "partial_loss_attached": Case(2, 2, 2, False, 2, "sgd", "fp32"),
    "uncorrected": Case(0, 1, 2, False, 1, "adamw", "bf16"),
    "uncorrected_but_told": Case(0, 2, 2, False, 1, "sgd", "fp32"),
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parity")
    (folder / "faults.json").write_text(json.dumps(list(CASES)))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in launches.environment().items():
            patch.setenv(name, value)
        write_plain_runs(folder, ["fp32", "bf16"])
        program = [str(Path(__file__).with_name("parity_faults.py"))]
        found = run_ranks(folder / "ranks", list(CASES.values()), plain=folder, program=program)
    return dict(zip(CASES, found, strict=True))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("fault", CASES)
def test_a_fault_is_found(rows, fault):
    row = rows[fault]
    assert "error" not in row, row
    assert not row["passed"], row


def test_what_is_wrong_is_named(rows):
    assert ".experts." in rows["experts_times_ep"]["worst"]
    assert rows["experts_times_ep"]["gradient_error"] == pytest.approx(1.0, rel=0.01)  # twice the gradient
    assert rows["norm_of_own_part"]["norm_error"] == pytest.approx(0.3, rel=0.01)
    assert rows["norm_of_own_part"]["loss_error"] > 1e-5, "a wrong norm clips by another factor"
    assert rows["partial_loss_attached"]["gradient_error"] > 0.1
    assert rows["uncorrected_but_told"]["norm_error"] > 1e-5
    assert rows["uncorrected_but_told"]["gradient_error"] < 1e-5, "gradients are right before they are clipped"


@pytest.mark.timeout(60)
def test_a_rank_that_dies_ends_the_others(tmp_path):
    """Rank 1 of 2 fails at once while the other would sleep for minutes."""
    code = "import os, sys, time\nif os.environ['RANK'] == '1': sys.exit('out of luck')\ntime.sleep(300)"
    (tmp_path / "program.py").write_text(code)
    told = wait_for_ranks(tmp_path, 2, program=[str(tmp_path / "program.py")], ended=lambda: 0, progress=lambda done: None)
    assert told == "rank 1 ended with 1: out of luck"
