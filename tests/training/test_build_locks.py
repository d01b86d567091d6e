"""Locks of operators that are compiled at first use."""

import subprocess
import sys

from mri_ds.training.processes import remove_stale_build_locks


def test_only_a_lock_whose_builder_is_gone_is_removed(tmp_path):
    """PyTorch's build lock is a file that its holder keeps open; one that was killed leaves it behind, and everyone waits."""
    held, stale = tmp_path / "held/lock", tmp_path / "stale/lock"
    held.parent.mkdir()
    stale.parent.mkdir()
    code = "import os, sys; os.open(sys.argv[1], os.O_CREAT | os.O_EXCL); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(held)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as builder:
        assert builder.stdout.readline() == "held\n"
        stale.touch()
        remove_stale_build_locks(tmp_path, is_shared=False)
        assert held.exists() and not stale.exists()
        builder.kill()
        builder.wait()
        remove_stale_build_locks(tmp_path, is_shared=False)
        assert not held.exists()
