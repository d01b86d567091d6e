"""nnU-Net's raw data: what is found on disk, what is listed as left over, what is refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mri_ds.config import TaskConfig
from mri_ds.data.layouts import find_dataset, load_subject
from mri_ds.data.nifti import write_image, write_label
from mri_ds.errors import InputError

SHAPE = (5, 6, 7)


def image(path: Path) -> None:
    write_image(path, np.random.default_rng(len(path.name)).normal(size=SHAPE).astype(np.float32), np.eye(4))


def label(path: Path) -> None:
    write_label(path, np.arange(np.prod(SHAPE)).reshape(SHAPE) % 3, np.eye(4))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Two cases of two channels, in a folder named as nnU-Net names them."""
    src = tmp_path / "Dataset005_Brain_Tumour"
    for case in ("b_2", "a"):
        for channel in range(2):
            image(src / "imagesTr" / f"{case}_{channel:04d}.nii.gz")
        label(src / "labelsTr" / f"{case}.nii.gz")
    return describe(src)


def describe(src: Path, **changes: Any) -> Path:
    """Writes a valid dataset.json of version 2 but for `changes`; None takes a key out."""
    content = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "core": 1, "rim": 2},
        "numTraining": 2,
        "file_ending": ".nii.gz",
        **changes,
    }
    (src / "dataset.json").write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return src


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_cases_are_found_on_disk(raw: Path) -> None:
    dataset = find_dataset(raw)
    assert (dataset.layout, dataset.channels, dataset.problems) == ("nnU-Net", ["T1", "T2"], [])
    assert dataset.tasks == {"brain_tumour": TaskConfig(kind="segmentation", classes=["background", "core", "rim"])}
    assert [subject.subject_id for subject in dataset.subjects] == ["a", "b_2"]
    second = dataset.subjects[1]
    assert second.images == [raw / "imagesTr" / f"b_2_000{channel}.nii.gz" for channel in range(2)]
    assert second.labels == {"brain_tumour": raw / "labelsTr" / "b_2.nii.gz"}
    sample = load_subject(second, dataset.tasks)
    assert sample["image"].shape == (2, *SHAPE) and set(np.unique(sample["targets"]["brain_tumour"])) == {0, 1, 2}


def test_version_1(raw: Path) -> None:
    """It lists images without their channel numbers, so that none exists as listed."""
    changes = {"channel_names": None, "file_ending": None, "modality": {"0": "T1", "1": "T2"}, "name": "Tumour"}
    training = [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in ("a", "b_2")]
    labels = {"0": "background", "1": "core", "2": "rim"}
    dataset = find_dataset(describe(raw, **changes, training=training, labels=labels))
    assert (dataset.layout, list(dataset.tasks), len(dataset.subjects)) == ("nnU-Net", ["tumour"], 2)


def test_a_dataset_that_lists_what_exists_is_the_decathlons(raw: Path) -> None:
    for case in ("a", "b_2"):
        (raw / "imagesTr" / f"{case}_0001.nii.gz").unlink()
    training = [{"image": f"imagesTr/{c}_0000.nii.gz", "label": f"labelsTr/{c}.nii.gz"} for c in ("a", "b_2")]
    dataset = find_dataset(describe(raw, training=training, channel_names={"0": "T1"}))
    assert dataset.layout == "MSD"


def test_orphans_are_listed(raw: Path) -> None:
    for channel in range(2):
        image(raw / "imagesTr" / f"unlabelled_000{channel}.nii.gz")
    image(raw / "imagesTr" / "a_0002.nii.gz")
    image(raw / "imagesTr" / "notes.nii.gz")
    label(raw / "labelsTr" / "widow.nii.gz")
    (raw / "imagesTr" / "readme.txt").touch()
    (raw / "imagesTr" / "._a_0000.nii.gz").touch()
    image(raw / "imagesTs" / "t_0000.nii.gz")  # meant to have no label
    dataset = find_dataset(describe(raw, numTraining=3))
    assert [subject.subject_id for subject in dataset.subjects] == ["a", "b_2"]
    assert dataset.problems == [
        "imagesTr/unlabelled has no label map in labelsTr",
        "imagesTr/a_0002.nii.gz is no channel of a case",
        "imagesTr/notes.nii.gz is no channel of a case",
        "labelsTr/widow.nii.gz has no image in imagesTr",
        "dataset.json says that there are 3 training cases, and 2 are complete",
    ]


def test_cases_that_are_listed(raw: Path) -> None:
    """The key "dataset" of version 2: files may lie anywhere below the folder, and others are none of it."""
    (raw / "other").mkdir()
    (raw / "imagesTr" / "a_0000.nii.gz").rename(raw / "other" / "t1.nii.gz")
    case = {"images": ["other/t1.nii.gz", "imagesTr/a_0001.nii.gz"], "label": "labelsTr/a.nii.gz"}
    dataset = find_dataset(describe(raw, dataset={"a": case}, numTraining=1))
    (subject,) = dataset.subjects
    assert subject.images == [raw / "other" / "t1.nii.gz", raw / "imagesTr" / "a_0001.nii.gz"]
    assert len(dataset.problems) == 3 and all("b_2" in line for line in dataset.problems)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"labels": {"background": 0, "whole_tumour": [1, 2], "core": 2}},
            "label 'whole_tumour' is a region of the values [1, 2], and a voxel has one class here. Fix: give each value a name",
        ),
        (
            {"labels": {"background": 0, "core": 1, "ignore": 2}},
            "label 'ignore' (2) marks voxels that nobody labelled, and here every voxel of a label map counts. Fix: complete",
        ),
        (
            {"labels": {"background": 0, "core": 2}},
            "'labels' = {'background': 0, 'core': 2} is not numbered from 0 without gaps.",
        ),
        ({"labels": {"background": 0}}, "'labels' names one class, 'background'."),
        ({"labels": {"background": 0, "core": None}}, "'labels' = {'background': 0, 'core': None} is not numbered"),
        ({"labels": None}, "has no 'labels'."),
        ({"channel_names": {"0": "T1", "2": "T2"}}, "'channel_names' = {'0': 'T1', '2': 'T2'} is not numbered from 0"),
        ({"channel_names": None}, "has no 'modality'."),
        ({"file_ending": ".png"}, "file_ending is '.png'. Fix: convert the files to .nii.gz"),
        ({"file_ending": [".nii.gz"]}, "file_ending is ['.nii.gz']."),
        ({"dataset": ["a"]}, "'dataset' is no mapping of cases. Fix: write"),
        ({"dataset": {"a": {"label": "labelsTr/a.nii.gz"}}}, "case 'a' lists no images."),
        ({"dataset": {"../a": {"images": []}}}, "case '../a' lists no images."),
        ({"dataset": {"a": {"images": ["/etc/passwd"]}}}, "image '/etc/passwd' lies outside the dataset."),
        ({"dataset": {"a": {"images": ["imagesTr/../../x"]}}}, "image 'imagesTr/../../x' lies outside the dataset."),
        ({"dataset": {"a": {"images": ["imagesTr/none.nii.gz"]}}}, "image 'imagesTr/none.nii.gz' is missing."),
    ],
)
def test_bad_descriptions(raw: Path, changes: dict[str, Any], words: str) -> None:
    line = refusal(lambda: find_dataset(describe(raw, **changes), "nnunet"))
    assert line.startswith(f"{raw}/dataset.json: {words}") and " Fix: " in line


def test_a_missing_channel(raw: Path) -> None:
    (raw / "imagesTr" / "b_2_0001.nii.gz").unlink()
    line = refusal(lambda: find_dataset(raw))
    assert line.startswith(f"{raw}/imagesTr: b_2_0001.nii.gz is missing. Fix: put it there, or take b_2 out; ")


def test_two_files_of_one_channel_or_case(raw: Path) -> None:
    image(raw / "imagesTr" / "a_0000.nii")
    assert "a_0000.nii and a_0000.nii.gz are two files of one channel" in refusal(lambda: find_dataset(raw))
    (raw / "imagesTr" / "a_0000.nii").unlink()
    label(raw / "labelsTr" / "a.nii")
    assert "a.nii and a.nii.gz are two label maps of one case" in refusal(lambda: find_dataset(raw))


def test_no_case_at_all(raw: Path) -> None:
    for path in (raw / "labelsTr").iterdir():
        path.unlink()
    assert refusal(lambda: find_dataset(raw)).startswith(f"{raw}: has no case with image and label. Fix: put images at ")


@pytest.mark.parametrize("content", [b"{", b"[" * 100_000, b"\xff\xfe", b"[]", b"3"])
def test_broken_json_is_one_line(raw: Path, content: bytes) -> None:
    (raw / "dataset.json").write_bytes(content)
    assert refusal(lambda: find_dataset(raw)).startswith(f"{raw}/dataset.json: is not ")
