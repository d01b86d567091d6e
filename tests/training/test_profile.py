"""Which steps are meant; what they leave behind is read back in tests/distributed/test_watch.py."""

import subprocess
import sys
from pathlib import Path

import pytest

from mri_ds.errors import InputError
from mri_ds.training.profile import MAX_STEPS, parse_steps


def test_steps_and_runs_of_steps():
    assert parse_steps("") == set()
    assert parse_steps("7") == {7}
    assert parse_steps("5,20-22, 21-23") == {5, 20, 21, 22, 23}


@pytest.mark.parametrize("text", ["0", "-3", "x", "5-", "7-5", "1.5", f"1-{MAX_STEPS + 1}", f"1-{MAX_STEPS},900"])
def test_what_is_no_step(text):
    with pytest.raises(InputError, match="--profile"):
        parse_steps(text)


@pytest.mark.timeout(120)
def test_the_command_refuses_before_it_starts(tmp_path):
    command = [
        str(Path(sys.executable).parent / "mri-ds"),
        "train",
        "--scale",
        "tiny",
        "--profile",
        "7-5",
        "--run",
        str(tmp_path / "r"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and done.stdout == "" and not (tmp_path / "r").exists()
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --profile: '7-5'")
