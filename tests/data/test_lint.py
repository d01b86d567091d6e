"""`mri-ds lint`: sound shards have no error; each kind of damage is found, and only where it is."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mri_ds.data.entries import index_path
from mri_ds.data.fingerprint import Fingerprint, Summary
from mri_ds.data.lint import Finding, lint
from mri_ds.data.manifest import FORMAT_VERSION, MANIFEST, Manifest, Split, write_manifest
from mri_ds.data.members import encode_sample, key_of
from mri_ds.data.shards import EncodedSubject, ShardWriter
from mri_ds.data.tars import file_sha256


@pytest.fixture
def write_splits(tmp_path, tasks):
    """write_splits(train=[(sample, {"site": ...}), ...], test=[...]) -> a folder of shards with these."""

    def write(**splits) -> Path:
        folder = tmp_path / "shards"
        folder.mkdir()
        parts = {}
        for name, samples in splits.items():
            writer = ShardWriter(folder, name)
            for sample, more in samples:
                members = encode_sample(sample, **more)
                writer.add(EncodedSubject(key_of(sample["subject_id"]), members, Summary((1, 1, 1), (1, 1, 1), {}, {})))
            writer.close()
            digests = {shard: file_sha256(folder / shard) for shard in writer.names}
            parts[name] = Split(shards=writer.names, num_samples=len(samples), sha256=digests)
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            layout="folder",
            channels=["T1w", "T2w"],
            tasks=tasks,
            splits=parts,
            fingerprint=Fingerprint(median_spacing_mm=(1, 1, 1), median_shape=(8, 9, 10)),
        )
        write_manifest(manifest, folder / MANIFEST)
        return folder

    return write


def findings(folder: Path, severity: str = "error") -> list[Finding]:
    return [finding for finding in lint(folder, num_workers=1).findings if finding.severity == severity]


def plain(make_sample, numbers, **changes):
    return [(make_sample(i) | changes, {}) for i in numbers]


def test_sound_shards_have_no_finding_and_are_counted(write_splits, make_sample):
    folder = write_splits(train=plain(make_sample, range(9)), test=plain(make_sample, range(9, 12)))
    seen = []
    report = lint(folder, num_workers=1, progress=lambda *done: seen.append(done))
    assert report.findings == [] and report.num_samples == {"train": 9, "test": 3} and seen == [(1, 2), (2, 2)]
    assert report.classes["lesion"]["train"] == {"none": 3, "few": 3, "many": 3}
    assert json.dumps(report.as_dict())


def test_processes_find_the_same(write_splits, make_sample):
    folder = write_splits(train=plain(make_sample, range(3)), test=plain(make_sample, range(2, 5)))
    assert lint(folder, num_workers=2).findings == lint(folder, num_workers=1).findings != []


def test_shards_of_files_are_sound(shards):
    assert findings(shards) == []


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_flipped_bit_is_found_and_located(write_splits, make_sample, place):
    folder = write_splits(train=plain(make_sample, range(4)), test=plain(make_sample, [7]))
    tar = folder / "train-000000.tar"
    entry = json.loads(index_path(tar).read_text())["samples"][2]
    offset, size = entry["members"]["image.chunks"]
    data = bytearray(tar.read_bytes())
    data[offset + int(place * size)] ^= 1
    tar.write_bytes(bytes(data))
    found = findings(folder)
    assert {f.check for f in found} == {"checksum", "content", "index"}
    assert any("SHA-256" in f.what and f.where == "train-000000.tar" for f in found)
    assert [f.where for f in found if f.check == "content"] == ["train-000000.tar: sub-002"]


def test_a_subject_in_two_splits_is_leakage_by_id_by_source_and_by_voxels(write_splits, make_sample):
    same_voxels = make_sample(2) | {"subject_id": "another-name"}
    folder = write_splits(
        train=[*plain(make_sample, [0, 1, 2]), (make_sample(3), {"source_sha256": ["ab", "cd"]})],
        test=[*plain(make_sample, [1]), (same_voxels, {}), (make_sample(4), {"source_sha256": ["cd"]})],
    )
    found = {(f.where, f.what.split(" in ")[0]) for f in findings(folder) if f.check == "leakage"}
    assert found == {
        ("test/sub-001, train/sub-001", "the same subject id"),
        ("test/sub-004, train/sub-003", "a source file"),
        ("test/another-name, train/sub-002", "the same voxels"),
    }


def test_the_same_volume_twice_in_one_split_is_a_warning(write_splits, make_sample):
    folder = write_splits(train=[*plain(make_sample, [0, 1, 2]), (make_sample(1) | {"subject_id": "twin"}, {})], test=[])
    assert findings(folder) == [] and [f.check for f in findings(folder, "warning")] == ["duplicates"]


def wrong_spacing(sample):
    sample["spacing_mm"] = np.array([1.0, 1.0, 1.5])


def left_handed(sample):
    sample["affine"] = np.diag([-1.0, 1.0, 1.0, 1.0])


def flat_affine(sample):
    sample["affine"] = np.diag([1.0, 0.0, 1.0, 1.0])


def unknown_class(sample):
    sample["targets"]["tissue"][3, 3, 3] = 3


def unknown_grade(sample):
    sample["targets"]["lesion"] = 3


def not_a_number(sample):
    sample["targets"]["age"] = float("nan")


def one_channel(sample):
    sample["image"] = sample["image"][:1]


def constant(sample):
    sample["image"][1] = 4.0


def swapped(sample):
    sample["targets"]["age"] = sample["targets"].pop("tissue")


@pytest.mark.parametrize(
    ("change", "check", "what"),
    [
        (wrong_spacing, "geometry", "spacing (1.0, 1.0, 1.5) mm, its affine says (1.0, 1.0, 1.0)"),
        (left_handed, "geometry", "axes run to LAS"),
        (flat_affine, "geometry", "cannot be inverted"),
        (unknown_class, "labels", "tissue holds 3, its classes are 0 to 2"),
        (unknown_grade, "labels", "lesion holds 3, its classes are 0 to 2"),
        (not_a_number, "labels", "age = nan is not finite"),
        (one_channel, "geometry", "1 channels, the manifest names 2"),
        (constant, "intensity", "T2w is constant"),
        (swapped, "labels", "age is a label map, the task a regression"),
    ],
)
def test_what_a_sample_should_not_be(write_splits, make_sample, change, check, what):
    sample = make_sample(1)
    change(sample)
    folder = write_splits(train=[*plain(make_sample, [0]), (sample, {}), *plain(make_sample, [2])], test=[])
    (found,) = findings(folder)
    assert (found.check, found.where) == (check, "train-000000.tar: sub-001") and what in found.what


def test_meta_that_is_not_that_of_its_voxels(write_splits, make_sample):
    folder = write_splits(train=plain(make_sample, range(3)), test=[])
    one, other = encode_sample(make_sample(0)), encode_sample(make_sample(1))
    writer = ShardWriter(folder, "train")
    lying = one | {name: other[name] for name in ("image.chunks", "tissue.places")}
    for name, members in (("sub-000", lying), ("sub-001", other), ("sub-002", encode_sample(make_sample(2)))):
        writer.add(EncodedSubject(name, members, Summary((1, 1, 1), (1, 1, 1), {}, {})))
    writer.close()
    assert {f.what for f in findings(folder)} == {
        "is not the tar that the manifest tells of (SHA-256)",
        "T1w is not what its meta.json says of it",
        "T2w is not what its meta.json says of it",
        "tissue has other places than tissue.places lists",
    }


def test_an_index_of_another_tar_and_a_tar_that_nobody_lists(write_splits, make_sample):
    folder = write_splits(train=plain(make_sample, range(3)), test=plain(make_sample, range(3, 6)))
    shutil.copy(folder / "test-000000.index.json", folder / "train-000000.index.json")
    shutil.copy(folder / "test-000000.tar", folder / "old.tar")
    assert [(f.check, f.where) for f in findings(folder)] == [("index", "train-000000.index.json")]
    assert [(f.check, f.where) for f in findings(folder, "warning")] == [("index", "old.tar")]


def test_a_tar_without_index_is_sound(write_splits, make_sample):
    folder = write_splits(train=plain(make_sample, range(3)), test=[])
    index_path(folder / "train-000000.tar").unlink()
    assert findings(folder) == []


def test_rare_classes_and_sites_are_warned_of(write_splits, make_sample):
    samples = [make_sample(i) for i in range(40)]
    for i, sample in enumerate(samples):
        sample["targets"]["lesion"] = 1 if i == 39 else 0
    folder = write_splits(train=[(s, {"site": "B" if i == 5 else "A"}) for i, s in enumerate(samples)], test=[])
    report = lint(folder, num_workers=1)
    assert report.num_errors == 0 and report.sites == {"train": {"A": 39, "B": 1}}
    assert {f.what for f in report.findings} == {
        "class 'few' has 1 of 40 subjects",
        "class 'many' has 0 of 40 subjects",
        "site 'B' has 1 of 40 subjects",
    }


def test_an_intensity_outlier_is_warned_of(write_splits, make_sample):
    samples = plain(make_sample, range(10))
    samples[4][0]["image"][1] *= 50
    folder = write_splits(train=samples, test=[])
    (found,) = findings(folder, "warning")
    assert (found.check, found.where) == ("outlier", "train/sub-004") and "range of channel 1" in found.what
