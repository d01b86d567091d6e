"""Locks of builds: a build that goes on keeps its lock, one that was killed loses it."""

import os
import subprocess
import sys
from pathlib import Path

from mri_ds.training.processes import remove_stale_build_locks

BUILD = """
import sys, time
from torch.utils.file_baton import FileBaton
assert FileBaton(sys.argv[1]).try_acquire()
print("builds", flush=True)
time.sleep(60)
"""


def test_only_the_lock_of_a_killed_build_goes(tmp_path: Path) -> None:
    lock = tmp_path / "shm_comm/lock"
    lock.parent.mkdir()
    build = subprocess.Popen([sys.executable, "-c", BUILD, str(lock)], stdout=subprocess.PIPE, text=True)
    try:
        assert build.stdout is not None and build.stdout.readline() == "builds\n"
        remove_stale_build_locks(tmp_path, is_shared=False)
        assert lock.exists()
    finally:
        build.kill()
        build.wait()
    remove_stale_build_locks(tmp_path, is_shared=True)
    assert lock.exists()  # some other machine may be building
    remove_stale_build_locks(tmp_path, is_shared=False)
    assert not lock.exists()


def test_on_a_shared_disk_age_tells(tmp_path: Path) -> None:
    lock = tmp_path / "shm_comm/lock"
    lock.parent.mkdir()
    lock.touch()
    os.utime(lock, (0, 0))
    remove_stale_build_locks(tmp_path, is_shared=True)
    assert not lock.exists()
