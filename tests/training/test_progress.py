"""What a person sees: lines in a log, a bar on a real terminal, nothing from other ranks."""

import io
import os
import pty
import subprocess
import sys

from mri_ds.training.progress import Progress, duration

SCALARS = {"loss": 0.51234, "throughput/step_s": 0.25, "throughput/voxels_per_s": 3.4e6}


def test_a_log_gets_a_line_now_and_then():
    stream = io.StringIO()
    progress = Progress(4, 0, is_shown=True, every_s=1000, stream=stream)
    progress.say("resuming")
    for step in range(1, 5):
        progress.update(step, SCALARS)
    progress.close()
    first, last = stream.getvalue().splitlines()
    assert first == "resuming" and last.startswith("step 4/4  loss 0.5123  0.25 s/step  3.40 Mvoxel/s  0:00 left")


def test_time_left_is_what_the_steps_so_far_took(monkeypatch):
    now = iter([100.0, 130.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    stream = io.StringIO()
    progress = Progress(110, 50, is_shown=True, every_s=0, stream=stream)
    progress.update(60, SCALARS)  # 10 steps in 30 s: 50 more take 150 s
    assert "2:30 left" in stream.getvalue()


def test_other_ranks_are_silent():
    stream = io.StringIO()
    progress = Progress(4, 0, is_shown=False, every_s=0, stream=stream)
    progress.say("resuming")
    progress.update(4, SCALARS)
    progress.close()
    assert stream.getvalue() == ""


def test_a_terminal_gets_a_bar():
    """On a pseudo-terminal, as a person's shell gives it."""
    code = f"""
from mri_ds.training.progress import Progress
progress = Progress(8, 2, is_shown=True)
progress.say("resuming [step 2]")
progress.update(5, {SCALARS})
progress.update(8, {SCALARS})
progress.close()
"""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "140"}
    with subprocess.Popen([sys.executable, "-c", code], stderr=theirs, env=environment) as process:
        os.close(theirs)
        seen = b""
        try:
            while chunk := os.read(ours, 4096):
                seen += chunk
        except OSError:  # a terminal whose other end is closed ends so
            pass
        assert process.wait(timeout=60) == 0
    text = seen.decode()
    assert (
        "resuming [step 2]" in text
        and "8/8" in text
        and "loss 0.5123" in text
        and "3.40 Mvoxel/s" in text
        and "0:00 left" in text
    )
    assert "\x1b[" in text


def test_duration():
    assert [duration(s) for s in (0, 59.4, 60, 3599, 3600, 90061)] == ["0:00", "0:59", "1:00", "59:59", "1:00:00", "25:01:01"]
