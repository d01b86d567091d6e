"""A rank's last words reach its supervisor, whatever they are."""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from pathlib import Path
from mri_ds.training import heart

kinds = {"failed": RuntimeError, "run": heart.RunError}
with heart.beating(Path(sys.argv[1]), timeout_s=60):
    heart.progress(7)
    heart.fail(kinds[sys.argv[2]]("\\u8111\\n" * 3000))
"""


@pytest.mark.parametrize("kind", ["failed", "run"])
def test_a_long_line_in_any_script_is_one_whole_message(tmp_path, kind):
    """From 4,096 bytes on, a beat of the other thread could land in the middle of it, and the supervisor would read no JSON."""
    reader, writer = os.pipe()
    environ = {**os.environ, "MRI_DS_HEART": str(writer), "MRI_DS_SUPERVISOR": str(os.getpid())}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "not there yet"), kind]
    done = subprocess.run(command, env=environ, pass_fds=[writer], timeout=60, capture_output=True, text=True)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        last = pipe.read().splitlines()[-1]
    assert done.returncode == 1, done.stderr
    told = json.loads(last)
    assert len(last) < 4096 and told["kind"] == kind and told["step"] == 7
    assert told["line"].count("\u8111") >= 90 and "\n" not in told["line"]
