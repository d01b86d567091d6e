"""Cross-validation without its trainings: what is refused, what counts as the same plan, and how signals travel."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mri_ds.errors import InputError
from mri_ds.evaluation.cross_validate import _passing_signals_on, _science, cross_validate


@pytest.mark.parametrize("option", ["--run=x", "--data=x", "--resume", "--resolve-only", "--json"])
def test_what_is_decided_here_is_refused(shards: Path, tmp_path: Path, option: str) -> None:
    with pytest.raises(InputError, match=f"{option.split('=')[0]} is not for"):
        cross_validate(shards, tmp_path / "out", [option])
    assert not (tmp_path / "out").exists()


def test_folds_there_are_not(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no fold 5"):
        cross_validate(shards, tmp_path / "out", only=[5])
    with pytest.raises(InputError, match="11 folds of 10 patients"):
        cross_validate(shards, tmp_path / "other", num_folds=11)


def test_shards_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="another machine"):
        cross_validate("https://example.org/shards", tmp_path)


def test_a_plan_is_the_science_of_the_options(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("training: {steps: 3}")
    by_path = list(_science(["--ranks", "2", f"--config={config}", "--set", "a.b=1", "--restarts=3"]))
    assert by_path[1:] == ["--set", "a.b=1"] and by_path[0].startswith("--config=") and str(config) not in by_path[0]
    config.write_text("training: {steps: 4}")
    changed = list(_science([f"--config={config}", "--set", "a.b=1", "--ranks=4", "--profile", "2-3"]))
    long = f"--set=data.flip_axes=[{'0, ' * 300}]"
    assert list(_science([long])) == [long]  # no name of a file is as long
    assert changed[1:] == by_path[1:] and changed[0] != by_path[0]  # a file counts by its content


def test_a_signal_reaches_the_training_and_is_remembered() -> None:
    code = "import signal, sys; signal.signal(15, lambda *_: sys.exit(7)); print('ready', flush=True); signal.pause()"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    assert child.stdout is not None and child.stdout.readline() == b"ready\n"
    before = signal.getsignal(signal.SIGTERM)
    with _passing_signals_on(child) as heard:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)  # a handler runs between two instructions
        assert child.wait(timeout=60) == 7 and heard == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) == before
