"""`mri-ds cross-validate` with real trainings: killed and started again, every subject predicted once by who never saw it."""

import csv
import json
import signal
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from launches import run, started, wait_for

from mri_ds.config import load_config
from mri_ds.data.index import ShardDataset
from mri_ds.data.manifest import read_manifest
from mri_ds.errors import InputError
from mri_ds.evaluation.cross_validate import cross_validate

SETS = ["training.steps=12", "training.global_batch=2", "training.checkpoint_every=1", "training.validate_every=0"]
SETS += ["data.num_workers=0", "data.patch=[16,16,16]", "model.num_layers=1", "model.num_experts=2"]
OPTIONS = ["--scale=tiny", "--ranks", "1", *(f"--set={item}" for item in SETS)]


@pytest.mark.timeout(900)
def test_a_killed_fold_goes_on_and_a_finished_one_is_left_alone(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "cv"
    command = [str(Path(sys.executable).parent / "mri-ds"), "cross-validate", "--data", str(shards), "--out", str(out)]
    command += ["--folds", "2", "--json", *OPTIONS]
    with started(command, tmp_path / "first.log") as (process, children):
        checkpoints = out / "fold-0" / "checkpoints"
        wait_for(lambda: list(checkpoints.glob("step*")) or process.poll() is not None, timeout_s=240, what="a checkpoint")
        assert process.poll() is None, (tmp_path / "first.log").read_text()
        below = list(children().values())
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert below
        wait_for(lambda: all(map(_has_ended, below)), timeout_s=240, what="the end of a training that nobody waits for")
    assert not (out / "fold-0" / "model.safetensors").exists()

    log = run(command, tmp_path / "second.log", timeout_s=600)
    assert "resuming from step" in log and log.count("subjects to train on") == 2
    result = json.loads((out / "evaluation.json").read_text())
    _check_held_out(shards, out, result)
    _check_pooled(out, result)

    before = {path: path.stat().st_mtime_ns for path in out.glob("fold-*/*")}
    assert cross_validate(shards, out, OPTIONS, num_folds=2) == result
    assert {path: path.stat().st_mtime_ns for path in out.glob("fold-*/*")} == before  # nothing was done again
    more_ranks = ["--scale=tiny", "--ranks", "2", *OPTIONS[3:]]
    assert cross_validate(shards, out, more_ranks, num_folds=2) == result  # how it runs is not what it computes
    with pytest.raises(InputError, match="other options of `mri-ds train`"):
        cross_validate(shards, out, [*OPTIONS, "--set=training.lr=1"], num_folds=2)
    with pytest.raises(InputError, match="other --folds"):
        cross_validate(shards, out, OPTIONS, num_folds=3)


def _has_ended(process: psutil.Process) -> bool:
    """A zombie has: it waits for the init of this container to take notice."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _check_held_out(shards: Path, out: Path, result: dict) -> None:
    with (out / "folds.csv").open() as file:
        fold_of = {row["subject_id"]: int(row["fold"]) for row in csv.DictReader(file)}
    assert {subject["subject_id"]: subject["fold"] for subject in result["subjects"]} == fold_of
    everyone = [s for split in ("train", "test") for s in ShardDataset(shards, split).subject_ids]
    assert sorted(fold_of) == sorted(everyone) and result["num_subjects"] == 10
    for fold in (0, 1):
        manifest = read_manifest(out / "shards" / f"fold-{fold}")
        trained = load_config(out / f"fold-{fold}" / "config.yaml").tasks
        assert trained == manifest.tasks and manifest.fold == fold  # the statistics are of this fold's training subjects
        seen = ShardDataset(out / "shards" / f"fold-{fold}", "train").subject_ids
        assert sorted(seen) == sorted(s for s, held_out_in in fold_of.items() if held_out_in != fold)


def _check_pooled(out: Path, result: dict) -> None:
    """Recomputed from the table: means over subjects, whichever fold they were in."""
    with (out / "out_of_fold.csv").open() as file:
        rows = list(csv.DictReader(file))
    dice = [float(row["value"]) for row in rows if (row["task"], row["figure"], row["class"]) == ("ball", "dice", "ball")]
    assert len(dice) == 10 and result["tasks"]["ball"]["dice"]["ball"] == pytest.approx(np.mean(dice))
    radius = {key: {r["subject_id"]: float(r["value"]) for r in rows if (r["task"], r["figure"]) == ("radius", key)}
              for key in ("truth", "prediction")}  # fmt: skip
    assert len(radius["truth"]) == 8  # two subjects have no radius
    errors = [abs(radius["truth"][s] - radius["prediction"][s]) for s in radius["truth"]]
    assert result["tasks"]["radius"]["mae"] == pytest.approx(np.mean(errors))
    assert [fold["num_subjects"] for fold in result["folds"]] == [5, 5]
    assert all(fold["train_s"] > 0 for fold in result["folds"])
