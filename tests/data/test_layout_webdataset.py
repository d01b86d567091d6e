"""Tars that webdataset's own writer made, read as a dataset; and what a hostile one may not do."""

import io
import json
import pickle
import tarfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import webdataset

from mri_ds.config import TaskConfig
from mri_ds.data import inside_tar
from mri_ds.data.images import source_bytes, source_sha256
from mri_ds.data.index import ShardDataset
from mri_ds.data.layouts import describe, find_dataset, load_subject
from mri_ds.data.shards import decoder, write_shards
from mri_ds.errors import InputError

SHAPE = (6, 7, 8)
AFFINE = np.array([[-1.0, 0, 0, 3], [0, 2, 0, -5], [0, 0, 1.5, 7], [0, 0, 0, 1]])


def voxels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 900, SHAPE).astype(np.int16)


def label(seed: int) -> np.ndarray:
    return (voxels(seed) > 450).astype(np.uint8)


def nii(array: np.ndarray) -> bytes:
    return nib.Nifti1Image(array, AFFINE).to_bytes()


def gz(array: np.ndarray) -> bytes:
    import gzip

    return gzip.compress(nii(array), compresslevel=1)


def sample(i: int) -> dict[str, object]:
    """As a user of webdataset writes it: dictionaries and numbers are encoded by its writer."""
    return {
        "__key__": f"site-a/s{i:02d}",
        "t1.nii.gz": gz(voxels(i)),
        "t2.nii": nii(voxels(i + 100)),
        "seg.nii.gz": gz(label(i)),
        "json": {"age": 20.5 + i, "patient": f"p{i // 2}", "site": "ab"[i % 2], "notes": {"free": "text"}},
        "cls": i % 3,
    }


def write(folder: Path, samples: list[dict[str, object]], per_tar: int = 4) -> Path:
    """(Its encoder zips what is called .gz, although these bytes are zipped already.)"""
    folder.mkdir(exist_ok=True)
    with webdataset.ShardWriter(str(folder / "data-%04d.tar"), maxcount=per_tar, encoder=True, verbose=0) as writer:
        for one in samples:
            writer.write(one)
    return folder


YAML = """tasks:
  seg: {kind: segmentation, classes: [air, head]}
  grade: {kind: classification, classes: [low, mid, high]}
  age: {kind: regression}
"""


@pytest.fixture
def foreign(tmp_path) -> Path:
    write(tmp_path / "foreign", [sample(i) for i in range(10)])
    (tmp_path / "foreign" / "dataset.yaml").write_text(YAML)
    return tmp_path / "foreign"


def test_samples_become_subjects_voxel_by_voxel(foreign):
    found = find_dataset(foreign)
    assert describe(found).startswith("WebDataset layout: 10 subjects of 5 patients; channels t1, t2; tasks seg (segmentation)")
    assert found.problems == [] and list(found.tasks) == ["seg", "grade", "age"]
    for i, subject in enumerate(found.subjects):
        loaded = load_subject(subject, found.tasks)
        assert (subject.subject_id, subject.patient, subject.site) == (f"site-a_s{i:02d}", f"p{i // 2}", "ab"[i % 2])
        np.testing.assert_array_equal(loaded["image"], np.stack([voxels(i), voxels(i + 100)]))
        np.testing.assert_array_equal(loaded["affine"], AFFINE)
        np.testing.assert_array_equal(loaded["targets"]["seg"], label(i))
        assert (loaded["targets"]["grade"], loaded["targets"]["age"]) == (i % 3, 20.5 + i)


def test_from_their_tars_to_our_shards_and_back_to_webdataset(foreign, tmp_path):
    """With two processes, and again without a change: the same bytes."""
    manifest = write_shards(find_dataset(foreign), tmp_path / "ours", num_folds=2, num_workers=2)
    assert manifest.skipped == [] and manifest.channels == ["t1", "t2"]
    train = ShardDataset(tmp_path / "ours", "train")
    urls = [str(tmp_path / "ours" / name) for name in manifest.splits["train"].shards]
    decoded = list(webdataset.WebDataset(urls, shardshuffle=False).decode(decoder))
    assert [item["meta.json"]["subject_id"] for item in decoded] == train.subject_ids
    for item, i in zip(decoded, (int(subject[-2:]) for subject in train.subject_ids)):
        np.testing.assert_array_equal(item["image.chunks"], np.stack([voxels(i), voxels(i + 100)])[:, ::-1])  # to RAS+
        np.testing.assert_array_equal(item["seg.chunks"], label(i)[::-1])
    before = {path.name: path.read_bytes() for path in (tmp_path / "ours").iterdir()}
    write_shards(find_dataset(foreign), tmp_path / "ours", num_folds=2, num_workers=1)
    assert {path.name: path.read_bytes() for path in (tmp_path / "ours").iterdir()} == before


def test_one_tar_alone_with_tasks_inferred(tmp_path):
    folder = write(tmp_path / "f", [{k: v for k, v in sample(i).items() if k not in ("seg.nii.gz", "t2.nii")} for i in range(4)])
    found = find_dataset(folder / "data-0000.tar")
    assert found.channels == ["t1"] and found.tasks["cls"] == TaskConfig(kind="classification", classes=["0", "1", "2"])
    assert list(found.tasks) == ["age", "cls"] and [s.values["cls"] for s in found.subjects] == ["0", "1", "2", "0"]


def test_zipped_once_as_by_tar_itself(foreign, tmp_path):
    """`tar cf`, or TarWriter(encoder=False), leaves the files as they are."""
    with webdataset.TarWriter(str(tmp_path / "plain.tar"), encoder=False) as writer:
        writer.write({"__key__": "s1", "nii.gz": gz(voxels(1)), "json": b'{"age": 3}'})
    with tarfile.open(tmp_path / "plain.tar") as tar:
        assert tar.extractfile("s1.nii.gz").read() == gz(voxels(1))
    (subject,) = find_dataset(tmp_path / "plain.tar").subjects
    np.testing.assert_array_equal(load_subject(subject, {})["image"][0], voxels(1))


def test_a_nameless_image_of_all_channels(tmp_path):
    four = np.stack([voxels(0), voxels(1)], axis=-1)
    folder = write(tmp_path / "f", [{"__key__": f"s{i}", "nii.gz": gz(four + i), "json": {"age": i}} for i in range(3)])
    (folder / "dataset.yaml").write_text("channels: [t1, t2]\ntasks: {age: {kind: regression}}\n")
    found = find_dataset(folder)
    np.testing.assert_array_equal(load_subject(found.subjects[2], {})["image"], np.moveaxis(four + 2, 3, 0))


# ---- NumPy arrays ----------------------------------------------------------------------------------------------------


def npy(i: int, **changes: object) -> dict[str, object]:
    """(webdataset's own encoder of .npy is numpy.lib.format.write_array, as here.)"""
    return {
        "__key__": f"s{i}",
        "npy": np.stack([voxels(i), voxels(i + 1)]).astype(np.float32),
        "seg.npy": label(i),
        "json": {"age": i, "affine": AFFINE.tolist()},
    } | changes


def test_arrays_with_a_place_in_the_world(tmp_path):
    spaced = {"age": 5, "spacing_mm": [1, 2, 3]}
    fortran = io.BytesIO()
    np.lib.format.write_array(fortran, np.asfortranarray(voxels(3).astype(">i2")))
    samples = [npy(0), npy(1), npy(2, json=spaced), npy(3, npy=np.asfortranarray(npy(3)["npy"]))]
    folder = write(tmp_path / "f", samples)
    (folder / "dataset.yaml").write_text("channels: [a, b]\ntasks: {seg: {kind: segmentation, classes: [air, head]}}\n")
    found = find_dataset(folder)
    for i, subject in enumerate(found.subjects):
        loaded = load_subject(subject, found.tasks)
        np.testing.assert_array_equal(loaded["image"], np.stack([voxels(i), voxels(i + 1)]))
        np.testing.assert_array_equal(loaded["targets"]["seg"], label(i))
        np.testing.assert_array_equal(loaded["affine"], np.diag([1.0, 2, 3, 1]) if i == 2 else AFFINE)


def raw_npy(array: np.ndarray, **changes: object) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, allow_pickle=True)
    return out.getvalue()


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/mri_ds_was_here"),))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (raw_npy(np.array([[[Evil()] * 2] * 2] * 2)), "holds Python objects, and pickles are never read"),
        (pickle.dumps(Evil()), "cannot be read as .npy"),
        (raw_npy(voxels(0).astype(complex)), "holds complex128, not plain numbers"),
        (raw_npy(voxels(0)[0]), "has shape (7, 8)"),
        (raw_npy(voxels(0))[:-9], "declares 672 bytes of voxels, and there are 663"),
        (raw_npy(voxels(0)).replace(b"(6, 7, 8)", b"(9, 9, 9)"), "declares 1458 bytes of voxels"),
        (raw_npy(voxels(0)).replace(b"(6, 7, 8), ", b"(9999,)*9, "), "cannot be read as .npy"),
        (raw_npy(voxels(0)).replace(b"(6, 7, 8), }  ", b"(9999,9999,9),}"), "declares 899820009 voxels, over"),
        (raw_npy(np.full(SHAPE, np.nan)), "voxels are NaN or infinite"),
        (raw_npy(np.ones(SHAPE)), "image is constant"),
        (b"", "cannot be read as .npy"),
    ],
)
def test_arrays_that_are_refused(tmp_path, content, reason):
    folder = write(tmp_path / "f", [npy(0) | {"npy": content}])
    (folder / "dataset.yaml").write_text("channels: [a]\ntasks: {age: {kind: regression}}\n")
    found = find_dataset(folder)
    with pytest.raises(InputError) as caught:
        load_subject(found.subjects[0], {})
    assert reason in str(caught.value) and not Path("/tmp/mri_ds_was_here").exists()


@pytest.mark.parametrize(
    "place", [{}, {"affine": 3}, {"affine": np.zeros((4, 4)).tolist()}, {"spacing_mm": [1, 0, 1]}, {"spacing_mm": "x"}]
)
def test_an_array_without_a_place(tmp_path, place):
    folder = write(tmp_path / "f", [npy(0, json={"age": 1, **place})])
    (folder / "dataset.yaml").write_text("channels: [a, b]\ntasks: {age: {kind: regression}}\n")
    with pytest.raises(InputError, match=r"has no place in the world.*spacing_mm \(3 numbers\) into s0.json"):
        load_subject(find_dataset(folder).subjects[0], {})


# ---- what is told, and what is refused -------------------------------------------------------------------------------


def test_what_is_not_used_is_told(tmp_path):
    samples = [sample(i) | {"thumb.jpg": b"x", "pyd": {"a": 1}} for i in range(3)] + [
        {"__key__": "poor", "t1.nii.gz": gz(voxels(0))}
    ]
    folder = write(tmp_path / "f", samples, per_tar=9)
    (folder / "dataset.yaml").write_text("channels: [t1, t2]\n" + YAML)
    assert find_dataset(folder).problems == [
        "poor has not all of t1, t2: left out",
        "3 members <key>.pyd are no channel and no label map",
        "3 members <key>.thumb.jpg are no channel and no label map",
    ]


@pytest.mark.parametrize(
    ("yaml", "changes", "reason"),
    [
        ("", {}, r"label maps \(seg\) need class names.*write dataset.yaml"),
        (YAML.replace("seg:", "lesion:"), {"seg.nii.gz": None}, r"task 'lesion' has no label map of any sample.*lesion.nii.gz"),
        (YAML, {"cls": 7}, r"s00.cls: class 7 of 3"),
        (YAML, {"cls": b"-1"}, r"s00.cls: is no class number"),
        (YAML, {"json": b"[1]"}, r"s00.json: is not an object"),
        (YAML, {"json": b"{"}, r"s00.json: is not JSON"),
        (YAML, {"json": b'"' + b"x" * 2**20 + b'"'}, r"s00.json: has 1048578 bytes"),
        (
            YAML.replace("age: {kind: regression}", "a: {kind: classification, classes: [x, y]}"),
            {},
            "belong to one classification",
        ),
        ("channels: [t3]\n" + YAML, {}, "no sample has t3"),
        ("tasks: {age: {kind: regression}}\n", {"seg.nii.gz": None, "cls": None, "t1.nii": b""}, "are one image"),
    ],
)
def test_what_cannot_be_a_dataset_is_one_line(tmp_path, yaml, changes, reason):
    one = {key: value for key, value in (sample(0) | changes).items() if value is not None}
    folder = write(tmp_path / "f", [one])
    (folder / "dataset.yaml").write_text(yaml)
    with pytest.raises(InputError, match=reason) as caught:
        find_dataset(folder)
    assert "Fix: " in str(caught.value) and "\n" not in str(caught.value)


def test_our_own_shards_are_no_such_dataset(shards, tmp_path):
    with pytest.raises(InputError, match="no known layout"):
        find_dataset(shards)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("s0.image.chunks")
        tar.addfile(info, io.BytesIO())
    with pytest.raises(InputError, match="holds no image"):
        find_dataset(tmp_path / "a.tar")


@pytest.mark.parametrize("name", ["../s0.nii.gz", "/etc/s0.nii.gz", "a/../../s0.nii.gz"])
def test_names_that_lead_outside(tmp_path, name):
    (tmp_path / "s0.nii.gz").write_bytes(gz(voxels(0)))
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        info = tarfile.TarInfo(name)
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    with pytest.raises(InputError, match="which leads outside"):
        find_dataset(tmp_path / "x.tar")


def test_links_devices_and_doubles(tmp_path):
    """A link is not followed: it is no member at all."""
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for kind, target in ((tarfile.SYMTYPE, "/etc/passwd"), (tarfile.LNKTYPE, "s1.json"), (tarfile.CHRTYPE, "")):
            info = tarfile.TarInfo(f"s{kind.decode()}.nii.gz")
            info.type, info.linkname = kind, target
            tar.addfile(info)
    with pytest.raises(InputError, match="holds no image"):
        find_dataset(tmp_path / "x.tar")
    with tarfile.open(tmp_path / "y.tar", "w") as tar:
        for name in ("s0.nii.gz", "./s0.nii.gz"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(InputError, match="twice"):
        find_dataset(tmp_path / "y.tar")


def test_a_key_in_two_tars(tmp_path):
    write(tmp_path / "f", [sample(0)]).joinpath("data-0000.tar").rename(tmp_path / "f" / "z.tar")
    write(tmp_path / "f", [sample(0)])
    with pytest.raises(InputError, match=r"z.tar: sample site-a_s00 is in two tars"):
        find_dataset(tmp_path / "f")


def test_a_window_shows_one_member_and_no_other(tmp_path):
    folder = write(tmp_path / "f", [sample(0)])
    path = folder / "data-0000.tar" / "site-a" / "s00.json"
    file, size = inside_tar.open_file(path)
    with file:
        content = file.read()
        assert len(content) == size and json.loads(content)["age"] == 20.5 and file.read(10) == b""
    assert source_bytes(path) == size and len(source_sha256(path)) == 64
    with pytest.raises(InputError, match="is not in its tar any more"):
        inside_tar.open_file(path.with_name("gone.json"))


MUTATED = 300


def test_damaged_tars_end_in_samples_or_in_one_line(tmp_path):
    """Bytes of headers and members overwritten, cut and repeated: read as a whole, or refused; never another exception."""
    folder = write(tmp_path / "f", [{k: v for k, v in sample(i).items() if k != "seg.nii.gz"} for i in range(3)], per_tar=9)
    tar = folder / "data-0000.tar"
    good, outcomes = tar.read_bytes(), {"read": 0, "refused": 0}
    headers = [at for at in range(0, len(good), 512) if good[at + 257 : at + 262] == b"ustar"]
    for seed in range(MUTATED):
        rng, content = np.random.default_rng(seed), bytearray(good)
        if seed % 3 == 0:
            at = headers[int(rng.integers(len(headers)))]
            for place in rng.integers(at, at + 300, size=3):
                content[place] = int(rng.choice([0, 0x37, 0x80, 0xFF, 0x2E, 0x2F]))
            content[at + 148 : at + 156] = b"        "  # with a checksum that fits, so that the damage is believed
            content[at + 148 : at + 156] = b"%06o\0 " % sum(content[at : at + 512])
        elif seed % 3 == 1:
            for place in rng.integers(len(content), size=20):
                content[place] ^= 1 << int(rng.integers(8))
        else:
            content = content[: int(rng.integers(len(content)))]
        tar.write_bytes(content)
        try:
            found = find_dataset(folder)
            for subject in found.subjects:
                load_subject(subject, found.tasks)
            outcomes["read"] += 1
        except InputError as err:
            outcomes["refused"] += 1
            assert str(folder) in str(err) and "\n" not in str(err), err
    assert min(outcomes.values()) > MUTATED // 20, outcomes
    assert {path.name for path in folder.iterdir()} == {tar.name} and set(tmp_path.iterdir()) == {folder}
