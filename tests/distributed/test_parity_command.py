"""`mri-ds parity --json` on real ranks, as a user and as a machine see it."""

import json
import subprocess
import sys
from pathlib import Path

import launches
import pytest

from mri_ds.training.parity import case as cases

KEYS = {"zero", "ep", "ranks", "recompute", "accumulation", "dtype", "gradient_error", "loss_error"}


def command(*options: str) -> list[str]:
    return [str(Path(sys.executable).with_name("mri-ds")), "parity", *options]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*options), capture_output=True, text=True, env=launches.environment(), timeout=900)


@pytest.fixture(scope="module")
def told():
    """One launch for all: the plain runs, which every number of ranks is held against, are made once."""
    done = run("--ranks", "1", "--ranks", "2", "--ranks", "4", "--quick", "--json")
    return done, json.loads(done.stdout)


@pytest.mark.timeout(900)
def test_every_layout_equals_one_plain_process(told):
    done, result = told
    assert result["passed"] is True and done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert all(set(row) >= KEYS for row in result["rows"])


@pytest.mark.timeout(900)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_layout_is_in_it_and_within_the_tolerance(told, ranks, dtype):
    rows = [row for row in told[1]["rows"] if (row["ranks"], row["dtype"]) == (ranks, dtype)]
    assert {(row["zero"], row["ep"]) for row in rows} >= {(0, 1), (2, min(2, ranks)), (3, min(2, ranks)), (3, min(4, ranks))}
    for error in ("gradient_error", "loss_error", "norm_error", "update_error"):
        assert all(0 <= row[error] <= {"fp32": 1e-5, "bf16": 2e-2}[dtype] for row in rows), error


def test_the_quick_choice_has_every_variant_of_every_stage():
    some = [case for ranks in (1, 2, 4) for case in cases.some_cases(ranks, ["fp32", "bf16"])]
    assert {(case.recompute, case.accumulation, case.optimizer) for case in some} == set(cases.VARIANTS)
    for zero in (0, 2, 3):
        mine = [case for case in some if case.zero == zero]
        assert {case.recompute for case in mine} == {True, False}
        assert {case.accumulation for case in mine} == {1, 2}
        assert {(case.optimizer, case.dtype) for case in mine} == {(o, d) for o in cases.LR for d in ("fp32", "bf16")}
    every = [case for ranks in (1, 2, 4) for case in cases.all_cases(ranks, ["fp32", "bf16"])]
    assert set(some) < set(every) and len(every) == len(set(every)) == 192


@pytest.mark.timeout(600)
def test_another_result_is_exit_code_1(monkeypatch, capsys):
    """The plain process starts from other weights than the ranks."""
    from mri_ds.cli.main import main

    for name, value in launches.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cases, "SEED", 1)
    one = cases.Case(0, 1, 1, False, 1, "sgd", "fp32")
    monkeypatch.setattr(cases, "some_cases", lambda ranks, dtypes: [one])
    with pytest.raises(SystemExit) as ended:
        main(["parity", "--ranks", "1", "--dtype", "fp32", "--quick", "--json"])
    assert ended.value.code == 1
    result = json.loads(capsys.readouterr().out)
    assert result["passed"] is False and not any(row["passed"] for row in result["rows"])


def test_bad_options_are_refused():
    for options, word in ((["--ranks", "3"], "3 ranks"), (["--dtype", "fp8"], "fp8")):
        done = run(*options)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and word in done.stderr


def test_the_plain_process_has_no_deepspeed():
    """All that it needs is imported, and a network built, without it."""
    code = """
import sys
from mri_ds.training.engine import build_objective
from mri_ds.training.parity import case, launch, reference
build_objective(case.run_config("sgd"))
sys.exit("deepspeed" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], env=launches.environment(), timeout=120).returncode == 0
