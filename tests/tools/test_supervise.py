"""Supervise: whatever ends a command, nothing of it is left running, not even what hides in another session."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[2] / "tools"

# Each line of `pids` is one process: a plain child, one in its own session, one that ignores SIGTERM.
TREE = """: > pids
bash -c 'echo $$ >> pids; exec sleep 300' &
setsid bash -c 'echo $$ >> pids; exec sleep 300' &
bash -c 'trap "" TERM; echo $$ >> pids; exec sleep 300' &
"""
PROGRAM = f"""
import os, sys
sys.path.insert(0, {str(TOOLS)!r})
import supervise
from pathlib import Path
supervise.GRACE_S = 0.5
supervise.take_charge()
try:
    code = supervise.run(["bash", "-c", sys.argv[1]], cwd=Path.cwd(), env=os.environ)
except supervise.Stopped as stop:
    sys.exit(stop.exit_code)
print("code", code)
"""


def start(script: str, folder: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, script], cwd=folder, stdout=subprocess.PIPE, text=True)


def wait_for_pids(path: Path, count: int) -> list[int]:
    for _ in range(200):
        pids = [int(line) for line in path.read_text().splitlines()] if path.exists() else []
        if len(pids) == count:
            return pids
        time.sleep(0.05)
    raise AssertionError(f"{count} processes did not start")


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_stop_signal_ends_the_whole_tree(tmp_path: Path) -> None:
    program = start(TREE + "wait", tmp_path)
    pids = wait_for_pids(tmp_path / "pids", 3)
    assert all(map(is_running, pids))
    program.send_signal(signal.SIGTERM)
    assert program.wait(timeout=20) == 128 + signal.SIGTERM
    assert [pid for pid in pids if is_running(pid)] == []


def test_ctrl_c_does_the_same_with_its_own_exit_code(tmp_path: Path) -> None:
    program = start(TREE + "wait", tmp_path)
    pids = wait_for_pids(tmp_path / "pids", 3)
    program.send_signal(signal.SIGINT)
    assert program.wait(timeout=20) == 130
    assert [pid for pid in pids if is_running(pid)] == []


def test_orphans_of_a_failed_command_are_ended_and_its_code_is_kept(tmp_path: Path) -> None:
    """As DeepSpeed's launcher does: it goes, its ranks stay."""
    program = start(TREE + "while [ $(wc -l < pids) -lt 3 ]; do sleep 0.05; done; exit 7", tmp_path)
    out, _ = program.communicate(timeout=20)
    assert out == "code 7\n"
    pids = wait_for_pids(tmp_path / "pids", 3)
    assert [pid for pid in pids if is_running(pid)] == []


def test_a_killed_command_has_the_shells_exit_code(tmp_path: Path) -> None:
    out, _ = start("kill -KILL $$", tmp_path).communicate(timeout=20)
    assert out == f"code {128 + signal.SIGKILL}\n"
