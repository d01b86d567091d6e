"""The benchmark of loaders: all contenders load the same voxels; what is absent says so; its figures are what they say."""

import dataclasses
import json
import subprocess
import sys
import time

import numpy as np
import pytest

from mri_ds.bench import contenders, loader
from mri_ds.bench.contenders import CONTENDERS, CROPS_ONLY
from mri_ds.bench.memory import PeakMemory, pss_bytes
from mri_ds.cli.main import main
from mri_ds.data.layouts import find_dataset, load_subject
from mri_ds.data.preprocess import to_canonical
from mri_ds.errors import InputError


@pytest.fixture(scope="module")
def job(subjects_folder, tmp_path_factory):
    at = tmp_path_factory.mktemp("bench")
    return loader._prepare(loader._labelled(find_dataset(subjects_folder), 8), at, 0)[0]


@pytest.mark.parametrize("name", [name for name in CONTENDERS if name not in CROPS_ONLY])
def test_every_contender_loads_every_subjects_voxels_once(job, name, tmp_path, monkeypatch):
    """The items themselves, caught where they are counted, against the files as load_subject reads them."""
    if name.startswith("MONAI"):
        pytest.importorskip("monai")
    seen = []

    def caught(loader_):
        def epoch():
            for item in loader_:
                image, maps = (item["image"][0], {"ball": item["ball"][0, 0]}) if isinstance(item, dict) else item
                seen.append((np.asarray(image), np.asarray(maps["ball"])))
                yield image.numel(), 0.0

        return epoch

    monkeypatch.setattr(contenders, "_epochs", caught)
    monkeypatch.setattr(contenders, "_monai_epochs", caught)
    counts = list(CONTENDERS[name](dataclasses.replace(job, cache=tmp_path))())
    expected = [to_canonical(load_subject(files, job.tasks)) for files in job.subjects]
    assert sum(count for count, _ in counts) == sum(sample["image"].size for sample in expected)
    assert len(seen) == len(expected) == 8
    for sample in expected:
        (image, label) = next(found for found in seen if np.array_equal(found[0], sample["image"]))
        assert image.dtype == np.float32 and label.dtype == np.int16 and np.array_equal(label, sample["targets"]["ball"])


@pytest.mark.parametrize("name", CONTENDERS)
def test_crops_have_the_asked_size(job, name, tmp_path):
    if name.startswith("MONAI"):
        pytest.importorskip("monai")
    epoch = CONTENDERS[name](dataclasses.replace(job, cache=tmp_path, patch=(12, 10, 8)))
    assert [count for count, _ in epoch()] == [12 * 10 * 8] * 8


@pytest.mark.timeout(280)
def test_the_command_prints_one_object(subjects_folder, monkeypatch, capfd):
    """With three contenders, each in its process; importing MONAI four times over would take a minute."""
    some = ["mri_ds", "mri_ds in training", "nibabel .nii.gz"]
    monkeypatch.setattr(loader, "CONTENDERS", {name: CONTENDERS[name] for name in some})
    command = ["bench", "loader", "--data", str(subjects_folder), "--patch", "8", "--workers", "1", "--epochs", "2"]
    command += ["--seconds", "0", "--json"]
    command += ["--subjects", "8"]
    with pytest.raises(SystemExit) as ended:
        main(command)
    result = json.loads(capfd.readouterr().out)
    assert ended.value.code == 0 and result["subjects"] == 8 and result["patch"] == [8, 8, 8]
    assert list(result["crops"]) == some and list(result["full"]) == [name for name in some if name not in CROPS_ONLY]
    for mode in ("full", "crops"):
        own = result[mode]["mri_ds"]
        for name, row in result[mode].items():
            assert row["voxels"] == own["voxels"] and row["peak_bytes"] > 50 * 2**20
            assert 0 < row["first_batch_s"] <= row["first_epoch_s"] and row["cpu_ns_per_voxel"] > 0
            if name != "mri_ds":
                assert result["ratios"][mode][name] == pytest.approx(own["voxels_per_s"] / row["voxels_per_s"])


def test_a_package_that_is_not_installed_is_told(job, monkeypatch):
    monkeypatch.setattr(loader.importlib.util, "find_spec", lambda name: None)
    row = loader._run("MONAI CacheDataset", job, 2)
    assert row == {"absent": "monai is not installed (pip install monai)"}
    assert loader._ratios({"mri_ds": {"voxels_per_s": 6.0}, "MONAI": row, "x": {"voxels_per_s": 2.0}}) == {"x": 3.0}


def test_a_dataset_without_labels_is_refused(subjects_folder):
    dataset = find_dataset(subjects_folder)
    bare = dataclasses.replace(dataset, subjects=[dataclasses.replace(s, labels={}) for s in dataset.subjects])
    with pytest.raises(InputError, match="0 subjects have all label maps"):
        loader._labelled(bare, 8)


def test_memory_is_counted_over_children_and_shared_pages_once():
    """200 MB held by a process and seen by its child: 200, not 400, beside the little that Python itself takes."""
    code = "import os, sys; data = b'1' * 200_000_000; pid = os.fork(); os.write(1, data[-1:]); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.read(2) == b"11"  # both are there
    with PeakMemory(process.pid) as peak:
        time.sleep(0.5)
    alone = pss_bytes(process.pid)
    process.communicate()
    assert 200e6 < peak.num_bytes < 250e6 and alone > 200e6 and pss_bytes(process.pid) == 0
