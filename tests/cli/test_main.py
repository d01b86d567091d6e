"""The command line as a whole: help with examples, exit codes, one line for bad input, what lands on which stream."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import call, refusal

from mri_ds import __version__
from mri_ds.cli import main
from mri_ds.cli.main import COMMANDS
from mri_ds.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = call(command, "--help")
    assert result.exit_code == 0
    assert f"mri-ds {command}" in result.stdout.split("Example:")[1]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_speaks_json(command: str) -> None:
    assert "--json" in call(command, "--help").stdout


def test_version() -> None:
    assert call("--version").stdout == f"{__version__}\n"


def test_a_wrong_option_is_exit_2() -> None:
    assert call("train", "--stepps", "3").exit_code == 2


def test_input_error_is_one_line_and_exit_2(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise InputError("image is 2-D\n(64 x 64)", where="a.nii.gz", fix="give a 3-D volume")

    monkeypatch.setattr("mri_ds.mri_network.describe", refuse)
    assert refusal("info") == "error: a.nii.gz: image is 2-D (64 x 64). Fix: give a 3-D volume."


def test_debug_shows_where_bad_input_was_refused() -> None:
    plain, told = call("info", "--scale", "smol"), call("--debug", "info", "--scale", "smol")
    assert plain.exit_code == told.exit_code == 2
    assert "Traceback" not in plain.stderr and plain.stderr.startswith("error: ")
    assert told.stderr.startswith("Traceback") and "in info" in told.stderr and told.stderr.endswith("\n" + plain.stderr)


def test_quiet_shows_results_without_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRI_DS_QUIET", "")
    small = ["synthesize", "--subjects", "2", "--size", "24"]
    loud, quiet = call(*small, "--out", str(tmp_path / "a")), call("--quiet", *small, "--out", str(tmp_path / "b"))
    assert "2/2" in loud.stderr and "2/2" not in quiet.stderr
    assert quiet.stdout.replace(str(tmp_path / "b"), "") == loud.stdout.replace(str(tmp_path / "a"), "") != ""


def test_the_shell_completes_commands() -> None:
    asked = {"_MRI_DS_COMPLETE": "complete_bash", "COMP_WORDS": "mri-ds tra", "COMP_CWORD": "1"}
    mri_ds = Path(sys.executable).with_name("mri-ds")
    done = subprocess.run([mri_ds], env=os.environ | asked, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["train"]


def test_another_rank_says_which_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    result = call("info", "--scale", "smol")
    assert result.exit_code == 2
    assert result.stderr.startswith("error (rank 3): ")


def test_other_failures_are_exit_1_with_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(scale: str) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr("mri_ds.mri_network.describe", fail)
    result = call("info")
    assert result.exit_code == 1
    assert isinstance(result.exception, RuntimeError)


def test_ctrl_c_is_exit_130_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(scale: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mri_ds.mri_network.describe", interrupt)
    result = call("info")
    assert (result.exit_code, result.output) == (130, "")


def test_json_keeps_stdout_clean_of_what_libraries_print(monkeypatch: pytest.MonkeyPatch) -> None:
    """From Python and from below it: both go to stderr, and the object alone to stdout."""
    code = """
import os, mri_ds.mri_network, mri_ds.training.plan.cost
mri_ds.training.plan.cost.cost = lambda scale: {}
def describe(scale):
    print("a library's notice")
    os.write(1, b"a C++ notice\\n")
    return {"parameters_total": 7}
mri_ds.mri_network.describe = describe
from mri_ds.cli.main import main
main(["info", "--json"])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert json.loads(done.stdout) == {"parameters_total": 7}
    assert "a library's notice" in done.stderr and "a C++ notice" in done.stderr


def test_python_m_mri_ds_and_launch_train_run_the_same_commands(tmp_path: Path) -> None:
    """From another folder, without installation: `launch/train.py` finds the package beside itself."""
    wrong = ["--scale", "smol", "--local_rank=0"]
    launched = subprocess.run(
        [sys.executable, ROOT / "launch" / "train.py", *wrong], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    module = subprocess.run(
        [sys.executable, "-m", "mri_ds", "train", *wrong], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (launched.returncode, module.returncode) == (2, 2)
    assert (
        launched.stderr
        == module.stderr
        == ("error: --scale: unknown scale 'smol'; there are tiny, small, base, large, xl. Fix: did you mean 'small'?\n")
    )


def test_main_takes_the_process_arguments(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["mri-ds", "--version"])
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == 0
    assert capsys.readouterr().out == f"{__version__}\n"
