"""The page about scaling shows what the plan says today."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(290)
def test_a_table_is_current_and_an_old_one_is_noticed(tmp_path):
    """One of the four: they are made by the same code, and the large ones take their time."""
    page = tmp_path / "scaling.md"
    page.write_text((ROOT / "tools/docs/scaling.md").read_text())
    check = [sys.executable, str(ROOT / "tools/docs/scaling.py"), "--check", "--only", "xl-64", "--page", str(page)]
    assert subprocess.run(check, cwd=ROOT).returncode == 0, "run: python tools/docs/scaling.py"
    page.write_text(page.read_text().replace("ZeRO-3, EP 8", "ZeRO-3, EP 9", 1))
    assert subprocess.run(check, cwd=ROOT).returncode == 1
