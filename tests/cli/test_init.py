"""`mri-ds init` on every kind of data: what it proposes and why, what training makes of its files, a person at a terminal."""

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from commands import call, refusal

from mri_ds.data.nifti import write_image, write_label

MRI_DS = Path(sys.executable).with_name("mri-ds")
SHAPE, THICK = (30, 28, 10), np.diag([1.0, 1.0, 4.0, 1.0])  # slices four times as thick
NAMES = [f"s{i:02d}" for i in range(10)]


def image(path: Path, seed: int) -> None:
    write_image(path, np.random.default_rng(seed).normal(100, 20, SHAPE).astype(np.float32), THICK)


def label(path: Path) -> None:
    """3 voxels of class 2 and 60 of class 1 among 8,400: rare ones."""
    voxels = np.zeros(SHAPE, np.int16)
    voxels[5:10, 5:11, 4:6] = 1
    voxels[20, 20, 3:6] = 2
    write_label(path, voxels, THICK)


def make_msd(src: Path) -> Path:
    pairs = []
    for i, name in enumerate(NAMES):
        image(src / f"imagesTr/{name}.nii.gz", i)
        label(src / f"labelsTr/{name}.nii.gz")
        pairs.append({"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"})
    content = {
        "name": "lesion",
        "labels": {"0": "background", "1": "core", "2": "rim"},
        "modality": {"0": "T1w"},
        "training": pairs,
    }
    (src / "dataset.json").write_text(json.dumps(content))
    return src


def make_bids(src: Path) -> Path:
    rows = ["participant_id\tage\tgroup"]
    for i, name in enumerate(NAMES):
        for channel in ("T1w", "FLAIR"):
            image(src / f"sub-{name}/anat/sub-{name}_{channel}.nii.gz", i)
        rows.append(f"sub-{name}\t{50 + i}\t{'patient' if i < 2 else 'control'}")
    (src / "participants.tsv").write_text("\n".join(rows) + "\n")
    (src / "participants.json").write_text(json.dumps({"age": {"Units": "years"}}))
    return src


def make_folder(src: Path) -> Path:
    """Label maps, and nothing that names their classes."""
    for i, name in enumerate(NAMES):
        image(src / f"images/{name}_T1w.nii.gz", i)
        label(src / f"labels/{name}_tumour.nii.gz")
    rows = [f"{name}\t{20 + i}" for i, name in enumerate(NAMES)]
    (src / "participants.tsv").write_text("\n".join(["participant_id\tage", *rows]) + "\n")
    return src


def make_csv(src: Path) -> Path:
    make_folder(src)
    rows = [f"{name},images/{name}_T1w.nii.gz,labels/{name}_tumour.nii.gz,{20 + i}" for i, name in enumerate(NAMES)]
    (src / "table.csv").write_text("\n".join(["subject,image:T1w,label:tumour,age", *rows]) + "\n")
    return src / "table.csv"


def proposed(source: Path, out: Path, *more: str) -> tuple[dict, dict, dict]:
    """({key: value}, {key: why}, everything that --json tells)."""
    result = call("init", source, "--out", out, "--yes", "--json", *more)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    return (
        {one["key"]: one["value"] for one in told["choices"]},
        {one["key"]: one["why"] for one in told["choices"]},
        told,
    )


def resolved(out: Path, scale: str, *more: str | Path) -> dict:
    """What `mri-ds train` makes of the files as they were written."""
    result = call("train", "--config", out / "run.yaml", "--ds_config", out / f"{scale}.json", "--resolve-only", *more)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def sane(value: dict, why: dict) -> None:
    """Of every proposal for these ten subjects."""
    assert value["model.scale"] == "small" and "8 subjects to train on" in why["model.scale"]
    assert value["data.spacing_mm"] == [1.0, 1.0, 4.0] and "4.0 times as long along one axis" in why["data.spacing_mm"]
    assert all(n <= most for n, most in zip(value["data.patch"], SHAPE))
    assert value["model.token_stride"][2] == 4 and "thick slices" in why["model.token_stride"]
    assert value["training.global_batch"] % value["ranks"] == 0 and value["training.global_batch"] <= 8
    assert all(why.values())


@pytest.mark.parametrize("make", [make_msd, make_bids, make_folder, make_csv], ids=["msd", "bids", "folder", "csv"])
def test_a_dataset(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    source, out = make(tmp_path / "data"), tmp_path / "out"
    value, why, told = proposed(source, out)
    sane(value, why)
    run = resolved(out, "small")["run"]
    assert run["data"]["patch"] == value["data.patch"] and run["model"]["token_stride"] == value["model.token_stride"]
    assert run["training"]["steps"] == value["training.steps"]
    told_tasks = told["data"]["tasks"]
    if make is make_bids:
        assert told["data"]["channels"] == ["FLAIR", "T1w"] and told_tasks["age"]["unit"] == "years"
        assert value["data.balance"] == "group" and "4.0 times the subjects" in why["data.balance"]
        assert "loss.class_balance" not in value
    else:
        assert value["loss.class_balance"] == 0.5 and "1/2,779 of the voxels" in why["loss.class_balance"]
    assert list(run["tasks"]) == value["tasks"] == list(told_tasks)
    first, second, third, last = told["commands"]
    assert first == f"mri-ds shard {source} --out {out / 'shards'}" and second.startswith("mri-ds lint ")
    assert f"--config {out / 'run.yaml'} --ds_config {out / 'small.json'}" in third and last.startswith("mri-ds evaluate ")
    names = {make_folder: source / "dataset.yaml", make_csv: source.with_suffix(".yaml")}.get(make)
    if names is not None:
        assert str(names) in told["files"]
        classes = ["background", "class1", "class2"]
        assert yaml.safe_load(names.read_text())["tasks"] == {
            "tumour": {"kind": "segmentation", "classes": classes}, "age": {"kind": "regression"}
        }  # fmt: skip


@pytest.mark.timeout(600)
def test_the_files_of_shards_train_and_nothing_is_written_over(shards: Path, tmp_path: Path) -> None:
    """A few steps with what was written, unchanged."""
    few = ["--scale", "tiny", "--ranks", "1", "--set", "training.steps=2", "--set", "training.validate_every=0"]
    value, why, told = proposed(shards, tmp_path, *few, "--set", "training.global_batch=2")
    assert value["tasks"] == ["ball", "size", "radius"] and value["model.scale"] == "tiny"
    assert why["model.scale"] == why["training.steps"] == "as you said"
    assert all(n <= most for n, most in zip(value["data.patch"], (24, 20, 16)))
    (train, evaluate) = told["commands"]
    assert train.startswith("mri-ds train --config ") and f"--data {shards}" in train and evaluate.startswith("mri-ds evaluate")
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    environment.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        environment.pop(name, None)
    command = [str(MRI_DS), *train.split()[1:]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert (tmp_path / "run/model.safetensors").is_file() and all(np.isfinite(row["loss"]) for row in rows if "loss" in row)
    kept = (tmp_path / "run.yaml").read_text()
    line = refusal("init", shards, "--out", tmp_path, "--yes", "--json")
    assert line == f"error: {tmp_path / 'run.yaml'}: is there already. Fix: give another --out, or --force."
    assert (tmp_path / "run.yaml").read_text() == kept
    assert call("init", shards, "--out", tmp_path, "--yes", "--json", "--force").exit_code == 0
    assert (tmp_path / "run.yaml").read_text() != kept


def test_what_cannot_be_is_refused(shards: Path, tmp_path: Path) -> None:
    asked = ("init", shards, "--out", tmp_path, "--yes")
    assert "--scale: unknown scale 'smal'; there are tiny" in refusal(*asked, "--scale", "smal")
    assert "there is no task 'bal'" in refusal(*asked, "--set", "tasks=bal")
    assert "2 subjects cannot be divided over 3 ranks" in refusal(*asked, "--ranks", "3", "--set", "training.global_batch=2")
    assert "unknown key 'training.lrr'" in refusal(*asked, "--set", "training.lrr=1")
    assert "data.patch = 'all'" in refusal(*asked, "--set", "data.patch=all")
    assert "add --yes" in refusal("init", shards, "--out", tmp_path, "--json")
    assert list(tmp_path.iterdir()) == []


class Terminal:
    """`mri-ds` with a terminal for its input and output, and someone who waits for a question before answering it."""

    def __init__(self, *args: str | Path) -> None:
        self.screen, own = pty.openpty()
        environment = os.environ | {"TERM": "dumb", "COLUMNS": "200", "NO_COLOR": "1"}
        self.process = subprocess.Popen(
            [str(MRI_DS), *map(str, args)], stdin=own, stdout=own, stderr=own, env=environment, start_new_session=True
        )
        os.close(own)
        self.shown, self.answered = "", 0  # all that came, and how much of it the last question that was waited for ended

    def answer(self, question: str, text: str, timeout_s: float = 200) -> None:
        self.wait_for(question, timeout_s)
        os.write(self.screen, f"{text}\n".encode())

    def wait_for(self, words: str, timeout_s: float = 200) -> None:
        end = time.monotonic() + timeout_s
        while not (found := re.compile(words).search(self.shown, self.answered)):
            assert time.monotonic() < end, f"waited for {words!r}:\n{self.shown}"
            assert self._read() or re.compile(words).search(self.shown, self.answered), f"ended before {words!r}:\n{self.shown}"
        self.answered = found.end()

    def end(self) -> int:
        while self._read():
            pass
        os.close(self.screen)
        return self.process.wait(timeout=100)

    def _read(self) -> bool:
        ready, _, _ = select.select([self.screen], [], [], 1.0)
        if not ready:
            return self.process.poll() is None
        try:
            text = os.read(self.screen, 65536).decode(errors="replace")
        except OSError:
            return False  # the other end is closed
        self.shown += text.replace("\r\n", "\n")
        return bool(text)


@pytest.mark.timeout(600)
def test_a_person_names_classes_and_changes_an_answer(tmp_path: Path) -> None:
    source, out = make_folder(tmp_path / "data"), tmp_path / "out"
    terminal = Terminal("init", source, "--out", out, "--scale", "tiny")
    terminal.answer(r"What is label 1 of tumour\?", "core")
    terminal.answer(r"What is label 2 of tumour\?", "")
    terminal.answer("Change which choice", "data.patch")
    terminal.answer(r"data.patch.*:", "[40, lots]")
    terminal.wait_for("data.patch = ")
    terminal.answer("Change which choice", "data.patch")
    terminal.answer(r"data.patch.*:", "[16, 16, 8]")
    terminal.answer("Change which choice", "")
    terminal.wait_for("Next:")
    assert terminal.end() == 0, terminal.shown
    assert "Traceback" not in terminal.shown and "as you said" in terminal.shown
    names = yaml.safe_load((source / "dataset.yaml").read_text())
    assert names["tasks"]["tumour"]["classes"] == ["background", "core", "class2"]
    run = yaml.safe_load((out / "run.yaml").read_text())
    assert run["data"]["patch"] == [16, 16, 8] and run["tasks"]["tumour"]["classes"] == ["background", "core", "class2"]
    assert resolved(out, "tiny")["run"]["data"]["patch"] == [16, 16, 8]
