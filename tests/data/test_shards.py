"""A dataset becomes shards: readable by others, the same bytes each time, statistics of train alone, nothing lost in silence."""

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import webdataset

from mri_ds.config import TaskConfig
from mri_ds.data import packing, staging
from mri_ds.data.index import ShardDataset
from mri_ds.data.layouts import Dataset, SubjectFiles
from mri_ds.data.processes import in_order
from mri_ds.data.shards import decoder, read_manifest, write_shards
from mri_ds.errors import InputError

TASKS = {
    "tissue": TaskConfig(kind="segmentation", classes=["background", "grey", "white"]),
    "lesion": TaskConfig(kind="classification", classes=["none", "few"]),
    "age": TaskConfig(kind="regression"),
}
LAS = np.diag([-1.0, 1.0, 2.0, 1.0])  # stored right to left: canonical orientation flips axis 0
IDENTITY_WORDS = (b"Erika Mustermann", b"/tmp", b"secret_folder")


@pytest.fixture
def make_dataset(tmp_path):
    """make_dataset(n) -> n subjects of 6 x 5 x 4 voxels in NIfTI files; labels hold classes by subject number."""

    def make(count: int, *, unlabelled=(), num_tasks=3) -> Dataset:
        folder = tmp_path / "secret_folder"
        folder.mkdir(exist_ok=True)
        subjects = [write_subject(folder, i, has_label=i not in unlabelled) for i in range(count)]
        return Dataset("folder", ["T1w", "T2w"], dict(list(TASKS.items())[:num_tasks]), subjects[::-1], [])

    return make


def write_subject(folder, i: int, *, has_label: bool) -> SubjectFiles:
    rng, name = np.random.default_rng(i), f"sub-{i:02d}.s"
    images = []
    for channel in range(2):
        voxels = rng.integers(0, 2000, size=(6, 5, 4)).astype(np.int16)
        voxels[0, 0, 0], voxels[-1, 0, 0] = 3000 + i, -i
        image = nib.Nifti1Image(voxels, LAS)
        image.header["descrip"] = b"Erika Mustermann"
        images.append(folder / f"{name}_{channel}.nii.gz")
        nib.save(image, images[-1])
    labels = {}
    if has_label:
        label = np.zeros((6, 5, 4), dtype=np.uint8)
        label[: i % 6 + 1] = 1 + i % 2
        labels["tissue"] = folder / f"{name}_tissue.nii.gz"
        nib.save(nib.Nifti1Image(label, LAS), labels["tissue"])
    values = {"lesion": ["none", "few"][i % 2], "age": 20.0 + i} if has_label else {}
    return SubjectFiles(name, images, labels, values)


def content(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_the_folder_holds_what_the_format_says(make_dataset, tmp_path):
    out = tmp_path / "out"
    manifest = write_shards(make_dataset(12), out, num_folds=3, fold=1)
    names = {f"{split}-{i:06d}" for split in ("train", "test") for i in range(4)}
    assert set(content(out)) == {f"{n}.tar" for n in names} | {f"{n}.index.json" for n in names} | {"manifest.json"}
    assert manifest == read_manifest(out)
    assert manifest.splits["train"].num_samples == 8 and manifest.splits["test"].num_samples == 4
    assert (manifest.layout, manifest.channels, manifest.num_folds, manifest.fold) == ("folder", ["T1w", "T2w"], 3, 1)
    with tarfile.open(out / "test-000000.tar") as tar:
        infos = tar.getmembers()
    assert [info.name for info in infos] == sorted(info.name for info in infos)
    assert {(info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode) for info in infos} == {(0, 0, 0, "", "", 0o644)}
    key = infos[0].name.split(".")[0]
    assert [info.name for info in infos] == [
        f"{key}.{m}" for m in ("image.chunks", "meta.json", "tissue.chunks", "tissue.places")
    ]


def test_tar_lists_them(make_dataset, tmp_path):
    write_shards(make_dataset(4), tmp_path / "out", num_folds=2)
    listing = subprocess.run(["tar", "tf", str(tmp_path / "out/train-000000.tar")], capture_output=True, text=True, check=True)
    assert listing.stdout.split()[0].endswith(".image.chunks") and listing.stderr == ""


def test_subjects_come_back_in_canonical_orientation(make_dataset, tmp_path):
    dataset = make_dataset(6)
    write_shards(dataset, tmp_path / "out", num_folds=3)
    for split in ("train", "test"):
        stored = ShardDataset(tmp_path / "out", split)
        for i, subject_id in enumerate(stored.subject_ids):
            files = next(s for s in dataset.subjects if s.subject_id == subject_id)
            sample = stored.read(i)
            raw = np.stack([nib.load(path).get_fdata() for path in files.images])
            assert np.array_equal(sample["image"], raw[:, ::-1]) and sample["image"].dtype == np.float32
            assert np.array_equal(sample["targets"]["tissue"], nib.load(files.labels["tissue"]).get_fdata()[::-1])
            assert nib.aff2axcodes(sample["affine"]) == ("R", "A", "S") and sample["spacing_mm"].tolist() == [1, 1, 2]
            assert sample["affine"] @ [5, 0, 0, 1] == pytest.approx(LAS @ [0, 0, 0, 1]), "the first voxel moved in the world"
            assert sample["targets"]["age"] == files.values["age"]
            assert ["none", "few"][sample["targets"]["lesion"]] == files.values["lesion"]


def test_no_subject_is_in_both_splits_and_every_fold_is_the_test_once(make_dataset, tmp_path):
    tested = []
    for fold in range(3):
        write_shards(make_dataset(8), tmp_path / f"{fold}", num_folds=3, fold=fold)
        train, test = (ShardDataset(tmp_path / f"{fold}", split).subject_ids for split in ("train", "test"))
        assert not set(train) & set(test) and len(train) + len(test) == 8
        tested += test
    assert sorted(tested) == sorted(s.subject_id for s in make_dataset(8).subjects)


def test_the_splits_are_stratified_and_a_missing_label_is_a_stratum(make_dataset, tmp_path):
    write_shards(make_dataset(12, unlabelled=(8, 9, 10, 11)), tmp_path / "out", num_folds=4)
    test = ShardDataset(tmp_path / "out", "test")
    assert sorted(str(test.value(i, "lesion")) for i in range(len(test))) == ["0", "1", "None"]


def test_statistics_are_those_of_the_training_subjects(make_dataset, tmp_path):
    manifest = write_shards(make_dataset(9, unlabelled=(4,)), tmp_path / "out", num_folds=3, fold=2)
    train = ShardDataset(tmp_path / "out", "train")
    targets = [train.read(i)["targets"] for i in range(len(train))]
    voxels = np.concatenate([t["tissue"].ravel() for t in targets if "tissue" in t])
    assert manifest.tasks["tissue"].class_prior == pytest.approx([np.mean(voxels == c) for c in range(3)])
    lesion = np.array([t["lesion"] for t in targets if "lesion" in t])
    assert manifest.tasks["lesion"].class_prior == pytest.approx([np.mean(lesion == c) for c in range(2)])
    ages = [t["age"] for t in targets if "age" in t]
    assert manifest.tasks["age"].mean == pytest.approx(np.mean(ages)) and manifest.tasks["age"].std == pytest.approx(np.std(ages))
    assert manifest.fingerprint.median_shape == (6, 5, 4) and manifest.fingerprint.median_spacing_mm == (1, 1, 2)
    assert list(manifest.tasks) == list(TASKS), "the order of the tasks is the user's"


def test_webdataset_iterates_and_decodes_them(make_dataset, tmp_path):
    out = tmp_path / "out"
    manifest = write_shards(make_dataset(7), out, num_folds=3)
    urls = [str(out / name) for name in manifest.splits["train"].shards]
    plain = list(webdataset.WebDataset(urls, shardshuffle=False))
    decoded = list(webdataset.WebDataset(urls, shardshuffle=False).decode(decoder))
    train = ShardDataset(out, "train")
    assert len(plain) == len(decoded) == len(train) > 0
    for i, item in enumerate(decoded):
        sample = train.read(i)
        assert item["meta.json"]["subject_id"] == sample["subject_id"] and item["__key__"] == sample["subject_id"].replace(
            ".", "%2E"
        )
        assert np.array_equal(item["image.chunks"], sample["image"]) and item["image.chunks"].dtype == np.int16
        assert np.array_equal(item["tissue.chunks"], sample["targets"]["tissue"])


def test_nothing_that_names_a_person_or_a_place_is_stored(make_dataset, tmp_path):
    dataset = make_dataset(6)
    dataset.subjects[0].images[1].write_bytes(b"")
    write_shards(dataset, tmp_path / "out", num_folds=2)
    for name, data in content(tmp_path / "out").items():
        for word in (*IDENTITY_WORDS, str(tmp_path).encode()):
            assert word not in data, (name, word)
    meta = json.loads(next(iter(webdataset.WebDataset(str(tmp_path / "out/train-000000.tar"), shardshuffle=False)))["meta.json"])
    files = next(s for s in dataset.subjects if s.subject_id == meta["subject_id"])
    assert meta["source_sha256"] == [hashlib.sha256(path.read_bytes()).hexdigest() for path in files.images]


def test_the_same_data_give_the_same_bytes_however_many_processes_read_them(make_dataset, tmp_path):
    """With one bad subject, so that its error crosses from process to process too."""
    dataset = make_dataset(6)
    dataset.subjects[0].images[0].write_bytes(b"")
    alone, pair = tmp_path / "alone", tmp_path / "pair"
    write_shards(dataset, alone, num_folds=2, num_workers=1)
    first = content(alone)
    write_shards(dataset, alone, num_folds=2, num_workers=1)
    assert content(alone) == first
    manifest = write_shards(dataset, pair, num_folds=2, num_workers=2)
    assert content(pair) == first and len(manifest.skipped) == 1


def test_old_shards_make_way_and_other_files_stay(make_dataset, tmp_path):
    out = tmp_path / "out"
    write_shards(make_dataset(12), out, num_folds=2)
    (out / "README.md").write_text("mine")
    (out / ".writing").mkdir()
    (out / ".writing" / "train-000009.tar").write_bytes(b"left by a killed call")
    write_shards(make_dataset(3, num_tasks=1), out, num_folds=3)  # without strata: one of three is `test`
    assert set(content(out)) == {"README.md", "manifest.json"} | {
        f"{name}.{end}" for name in ("train-000000", "train-000001", "test-000000") for end in ("tar", "index.json")
    }
    assert len(ShardDataset(out, "train")) == 2 and (out / "README.md").read_text() == "mine"


def test_a_failed_call_leaves_the_previous_shards_whole(make_dataset, tmp_path, monkeypatch):
    out = tmp_path / "out"
    write_shards(make_dataset(6), out, num_folds=2)
    before = content(out)
    bad = make_dataset(6)
    bad.subjects[3].images[0].write_bytes(b"\x1f\x8b")
    with pytest.raises(InputError, match=r"sub-02.s_0.nii.gz"):
        write_shards(bad, out, num_folds=2, strict=True)
    assert content(out) == before


def test_a_call_killed_while_moving_leaves_no_manifest(make_dataset, tmp_path, monkeypatch):
    """The manifest moves last: a reader never sees new shards under an old manifest, or half of them."""
    out, moved = tmp_path / "out", []

    def replace(source, target, move=os.replace):
        moved.append(target)
        if target.parent == out and len([path for path in moved if path.parent == out]) == 3:
            raise KeyboardInterrupt
        move(source, target)

    write_shards(make_dataset(6, num_tasks=1), out, num_folds=2)
    monkeypatch.setattr(staging.os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        write_shards(make_dataset(6, num_tasks=1), out, num_folds=2)
    with pytest.raises(InputError, match=r"no shards here"):
        read_manifest(out)
    monkeypatch.undo()
    write_shards(make_dataset(6, num_tasks=1), out, num_folds=2)
    assert len(ShardDataset(out, "train")) == 3


def test_a_bad_subject_stops_or_is_listed(make_dataset, tmp_path):
    dataset = make_dataset(8)
    dataset.subjects[2].images[0].write_bytes(b"")  # subjects stand in reverse order: sub-05.s
    with pytest.raises(InputError, match=r"sub-05.s_0.nii.gz"):
        write_shards(dataset, tmp_path / "out", num_folds=2, strict=True)
    assert not (tmp_path / "out" / "manifest.json").exists()
    manifest = write_shards(dataset, tmp_path / "out", num_folds=2)
    assert [line.split(":")[0] for line in manifest.skipped] == ["sub-05.s"] and len(manifest.skipped[0]) > 20
    assert sum(split.num_samples for split in manifest.splits.values()) == 7
    stored = [s for split in ("train", "test") for s in ShardDataset(tmp_path / "out", split).subject_ids]
    assert "sub-05.s" not in stored and len(stored) == 7


def test_a_killed_process_is_reported_and_does_not_hang():
    with pytest.raises(RuntimeError, match="was killed"):
        list(in_order(os._exit, [1, 1, 1], 2))


def test_no_process_outlives_a_killed_parent():
    """The parent prints its workers' ids once both are at work, and is killed."""
    code = """
import multiprocessing, threading, time
from mri_ds.data.processes import in_order
if __name__ == "__main__":
    tell = lambda: print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    threading.Timer(1.0, tell).start()
    list(in_order(time.sleep, [600, 600], 2))
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    parent.kill()
    parent.wait()
    assert len(workers) == 2
    deadline = time.monotonic() + 30
    while any(is_running(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(is_running(pid) for pid in workers)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_subject_with_another_number_of_channels_is_bad(make_dataset, tmp_path):
    dataset = make_dataset(6)
    dataset.subjects[0].images.pop()
    with pytest.raises(InputError, match=r"sub-05.s: 1 image channels .time points count., the dataset has 2"):
        write_shards(dataset, tmp_path / "out", num_folds=2, strict=True)


def test_too_few_subjects_for_the_folds_is_one_line(make_dataset, tmp_path):
    with pytest.raises(InputError, match=r"split 'train' has no subject"):
        write_shards(make_dataset(1), tmp_path / "out")
    with pytest.raises(InputError, match=r"split 'test' has no subject \(2 in all, 5 folds\).*fewer folds"):
        write_shards(make_dataset(2, num_tasks=1), tmp_path / "out", fold=4)
    with pytest.raises(InputError, match=r"fold 5 of 5"):
        write_shards(make_dataset(2), tmp_path / "out", fold=5)
    with pytest.raises(InputError, match=r"fold 0 of 1\..*at least 2"):
        write_shards(make_dataset(2), tmp_path / "out", num_folds=1)


def test_progress_counts_every_subject(make_dataset, tmp_path):
    seen = []
    write_shards(make_dataset(5), tmp_path / "out", num_folds=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 5) for i in range(1, 6)]


def test_a_shard_that_grows_too_large_is_followed_by_another(make_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "MAX_SHARD_BYTES", 4000)  # one subject is about 3,000 bytes
    manifest = write_shards(make_dataset(16), tmp_path / "out", num_folds=2)
    assert manifest.splits["train"].shards == [f"train-{i:06d}.tar" for i in range(8)]
    assert len(ShardDataset(tmp_path / "out", "train")) == 8


def test_a_task_called_image_is_kept_apart_from_the_image(make_dataset, tmp_path):
    plain = make_dataset(4)
    subjects = [SubjectFiles(s.subject_id, s.images, {"image": s.labels["tissue"]}, {}) for s in plain.subjects]
    write_shards(Dataset("folder", plain.channels, {"image": TASKS["tissue"]}, subjects, []), tmp_path / "out", num_folds=2)
    sample = ShardDataset(tmp_path / "out", "train").read(0)
    assert sample["image"].shape == (2, 6, 5, 4) and set(np.unique(sample["targets"]["image"])) <= {0, 1, 2}
