"""Dataset layouts: what is found in a folder, what is refused in one line, and one subject's files as a Sample."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mri_ds.config import TaskConfig
from mri_ds.data.layouts import LAYOUTS, Dataset, SubjectFiles, find_dataset, load_subject
from mri_ds.data.nifti import write_image, write_label
from mri_ds.data.splits import assign_folds
from mri_ds.errors import InputError

REAL = Path(os.environ.get("MRI_DS_REAL_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")) / "Task04_Hippocampus"
SHAPE = (5, 6, 7)
AFFINE = np.array([[0, 0, -2.0, 30], [1, 0, 0, -10], [0, 1.5, 0, 5], [0, 0, 0, 1]])  # a turned grid of 1 x 1.5 x 2 mm
TISSUE = TaskConfig(kind="segmentation", classes=["background", "grey", "white"])
LESION = TaskConfig(kind="classification", classes=["none", "few", "many"])
AGE = TaskConfig(kind="regression", unit="years")
TASKS = {"tissue": TISSUE, "lesion": LESION, "age": AGE}
DESCRIPTION = """\
channels: [T1w, T2w]
tasks:
  tissue: {kind: segmentation, classes: [background, grey, white]}
  lesion: {kind: classification, classes: [none, few, many]}
  age: {kind: regression, unit: years}
"""


def image_file(path: Path, *, shape: tuple[int, ...] = SHAPE, affine: np.ndarray = AFFINE, seed: int = 0) -> Path:
    write_image(path, np.random.default_rng(seed).normal(100, 20, size=shape).astype(np.float32), affine)
    return path


def label_file(path: Path, *, shape: tuple[int, ...] = SHAPE, affine: np.ndarray = AFFINE, highest: int = 2) -> Path:
    write_label(path, np.arange(np.prod(shape)).reshape(shape) % (highest + 1), affine)
    return path


def refusal(call: Callable[[], object]) -> str:
    """The one line of a refusal."""
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def moved(affine: np.ndarray, by_mm: float) -> np.ndarray:
    other = affine.copy()
    other[1, 3] += by_mm
    return other


# ---- one subject -----------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> SubjectFiles:
    images = [image_file(tmp_path / f"s_{channel}.nii.gz", seed=seed) for seed, channel in enumerate(("T1w", "T2w"))]
    return SubjectFiles("s", images, {"tissue": label_file(tmp_path / "s_tissue.nii.gz")}, {"lesion": "many", "age": "61.5"})


def test_a_sample_in_the_orientation_of_its_files(files: SubjectFiles) -> None:
    sample = load_subject(files, TASKS)
    assert sample["subject_id"] == "s"
    assert sample["image"].shape == (2, *SHAPE) and sample["image"].dtype == np.float32
    assert not np.array_equal(sample["image"][0], sample["image"][1])
    np.testing.assert_allclose(sample["affine"], AFFINE)
    np.testing.assert_allclose(sample["spacing_mm"], [1, 1.5, 2])
    assert sample["targets"]["tissue"].dtype == np.int16
    np.testing.assert_array_equal(sample["targets"]["tissue"].ravel()[:4], [0, 1, 2, 0])
    assert (sample["targets"]["lesion"], sample["targets"]["age"]) == (2, 61.5)


def test_what_has_no_label_is_absent(files: SubjectFiles) -> None:
    assert load_subject(replace(files, labels={}, values={"age": 30.0}), TASKS)["targets"] == {"age": 30.0}
    assert load_subject(files, {})["targets"] == {}


def test_one_file_of_all_channels_equals_one_file_per_channel(files: SubjectFiles, tmp_path: Path) -> None:
    apart = load_subject(files, TASKS)
    write_image(tmp_path / "both.nii.gz", apart["image"], AFFINE)
    together = load_subject(replace(files, images=[tmp_path / "both.nii.gz"]), TASKS)
    np.testing.assert_array_equal(together["image"], apart["image"])


def test_files_written_a_rounding_apart_are_one_grid(files: SubjectFiles) -> None:
    label_file(files.labels["tissue"], affine=moved(AFFINE, 0.005))
    assert "tissue" in load_subject(files, TASKS)["targets"]


@pytest.mark.parametrize("which", ["label", "channel"])
def test_shape_mismatch(files: SubjectFiles, which: str) -> None:
    path = files.labels["tissue"] if which == "label" else files.images[1]
    (label_file if which == "label" else image_file)(path, shape=(5, 6, 8))
    line = refusal(lambda: load_subject(files, TASKS))
    assert line == f"{path}: shape 5 x 6 x 8 differs from 5 x 6 x 7 of s_T1w.nii.gz. Fix: resample it onto that image's grid."


@pytest.mark.parametrize("which", ["label", "channel"])
@pytest.mark.parametrize(
    ("affine", "apart"),
    [
        (moved(AFFINE, 0.5), "0.5"),  # a shift
        (AFFINE * [[1], [-1], [1], [1]], "20"),  # left and right mistaken: y = i - 10 against 10 - i, furthest apart at i = 0
        (AFFINE @ np.diag([1, 1, 1.1, 1]), "1.2"),  # slices 2.2 mm apart instead of 2: 6 * 0.2 mm at the last
    ],
)
def test_affine_mismatch(files: SubjectFiles, which: str, affine: np.ndarray, apart: str) -> None:
    path = files.labels["tissue"] if which == "label" else files.images[1]
    (label_file if which == "label" else image_file)(path, affine=affine)
    what = f"affine places its corners up to {apart} mm from those of s_T1w.nii.gz"
    fix = "resample it onto that image's grid, or correct its header"
    assert refusal(lambda: load_subject(files, TASKS)) == f"{path}: {what}. Fix: {fix}."


def test_label_value_that_is_no_class(files: SubjectFiles) -> None:
    path = label_file(files.labels["tissue"], highest=3)
    what = "label value 3 is none of the 3 classes (0 to 2)"
    fix = "name the class in the dataset's description, or correct the label"
    assert refusal(lambda: load_subject(files, TASKS)) == f"{path}: {what}. Fix: {fix}."


def test_values_that_are_no_target(files: SubjectFiles) -> None:
    def line(**values: str) -> str:
        return refusal(lambda: load_subject(replace(files, values=values), TASKS))

    assert line(lesion="meny") == "s: lesion = 'meny' is no class. Fix: did you mean 'many'?"
    assert line(age="old") == "s: age = 'old' is not a finite number. Fix: correct it, or write n/a."
    assert line(age="inf") == "s: age = 'inf' is not a finite number. Fix: correct it, or write n/a."


def test_unreadable_files_are_named(files: SubjectFiles) -> None:
    files.images[1].write_bytes(b"")
    assert refusal(lambda: load_subject(files, TASKS)).startswith(f"{files.images[1]}: file is empty. Fix: ")
    image_file(files.images[1])
    files.labels["tissue"].unlink()
    assert refusal(lambda: load_subject(files, TASKS)).startswith(f"{files.labels['tissue']}: no such file. Fix: ")


# ---- a folder with a table -------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three subjects, two channels, three tasks; sub-02 has no label map and no age."""
    for subject in ("sub-01", "sub-02", "sub-03"):
        for channel in ("T1w", "T2w"):
            image_file(tmp_path / "images" / f"{subject}_{channel}.nii.gz")
        if subject != "sub-02":
            label_file(tmp_path / "labels" / f"{subject}_tissue.nii.gz")
    table(tmp_path, "participant_id\tage\tlesion\tsite", "sub-03\t30\tfew\tA", "sub-01\t61.5\tnone\tB", "sub-02\tn/a\tmany\tA")
    (tmp_path / "dataset.yaml").write_text(DESCRIPTION)
    return tmp_path


def table(src: Path, *lines: str) -> Path:
    (src / "participants.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return src / "participants.tsv"


def describe(src: Path, **content: Any) -> Path:
    (src / "dataset.yaml").write_text(json.dumps(content))  # JSON is YAML
    return src / "dataset.yaml"


def without_labels(src: Path) -> Path:
    (src / "dataset.yaml").unlink()
    for path in (src / "labels").iterdir():
        path.unlink()
    return src


def folder_refusal(src: Path) -> str:
    return refusal(lambda: find_dataset(src))


def test_folder(folder: Path) -> None:
    dataset = find_dataset(folder)
    assert (dataset.layout, dataset.channels, dataset.tasks, dataset.problems) == ("folder", ["T1w", "T2w"], TASKS, [])
    assert [subject.subject_id for subject in dataset.subjects] == ["sub-01", "sub-02", "sub-03"]  # sorted, not as in the table
    first, second, _ = dataset.subjects
    assert first.images == [folder / "images" / f"sub-01_{channel}.nii.gz" for channel in ("T1w", "T2w")]
    assert first.labels == {"tissue": folder / "labels" / "sub-01_tissue.nii.gz"}
    assert first.values == {"age": 61.5, "lesion": "none"}
    assert (second.labels, second.values) == ({}, {"lesion": "many"})
    assert load_subject(first, dataset.tasks)["targets"]["lesion"] == 0


def test_channels_follow_the_description(folder: Path) -> None:
    (folder / "dataset.yaml").write_text(DESCRIPTION.replace("[T1w, T2w]", "[T2w]"))
    dataset = find_dataset(folder)
    assert dataset.channels == ["T2w"]
    assert dataset.subjects[0].images == [folder / "images" / "sub-01_T2w.nii.gz"]
    assert "images/sub-01_T1w.nii.gz belongs to no subject or task" in dataset.problems


def test_files_of_nobody_are_problems(folder: Path) -> None:
    for name in ("images/sub-09_T1w", "images/sub-01_FLAIR", "labels/sub-01_vessel", "labels/sub-01_age", "labels/sub-01"):
        image_file(folder / f"{name}.nii.gz")
    (folder / "images" / "._sub-01_T1w.nii.gz").touch()  # what macOS leaves beside a file is no image
    (folder / "images" / "notes.txt").touch()
    assert find_dataset(folder).problems == [
        "images/sub-01_FLAIR.nii.gz belongs to no subject or task",
        "images/sub-09_T1w.nii.gz belongs to no subject or task",
        "labels/sub-01.nii.gz belongs to no subject or task",
        "labels/sub-01_age.nii.gz belongs to no subject or task",
        "labels/sub-01_vessel.nii.gz belongs to no subject or task",
    ]


def test_ids_that_begin_alike(folder: Path) -> None:
    for channel in ("T1w", "T2w"):
        image_file(folder / "images" / f"sub-01_b_{channel}.nii.gz")
        image_file(folder / "images" / f"sub-011_{channel}.nii.gz")
    describe(folder, channels=["T1w", "T2w"], tasks={"age": AGE.model_dump()})
    table(folder, "participant_id\tage", "sub-01\t1", "sub-01_b\t2", "sub-011\t3")
    dataset = find_dataset(folder)
    images = {subject.subject_id: [path.name for path in subject.images] for subject in dataset.subjects}
    assert images == {name: [f"{name}_T1w.nii.gz", f"{name}_T2w.nii.gz"] for name in ("sub-01", "sub-011", "sub-01_b")}


def test_an_id_that_is_only_the_beginning_of_another(folder: Path) -> None:
    """sub-011 is not in the table: its image is none of sub-01, and brings no channel."""
    image_file(folder / "images" / "sub-011_T1w.nii.gz")
    (folder / "dataset.yaml").write_text(DESCRIPTION.replace("channels: [T1w, T2w]\n", ""))
    dataset = find_dataset(folder)
    assert dataset.channels == ["T1w", "T2w"]
    assert dataset.problems == ["images/sub-011_T1w.nii.gz belongs to no subject or task"]


def test_nameless_file_beside_named_ones(folder: Path) -> None:
    image_file(folder / "images" / "sub-01.nii.gz")
    (folder / "dataset.yaml").write_text(DESCRIPTION.replace("channels: [T1w, T2w]\n", ""))
    dataset = find_dataset(folder)
    assert [path.name for path in dataset.subjects[0].images] == ["sub-01_T1w.nii.gz", "sub-01_T2w.nii.gz"]
    assert dataset.problems == ["images/sub-01.nii.gz belongs to no subject or task"]
    (folder / "images" / "sub-01_T2w.nii.gz").unlink()
    assert folder_refusal(folder).startswith(f"{folder / 'images'}: sub-01_T2w.nii.gz is missing. Fix: ")


def test_nameless_files_hold_one_channel_or_all(tmp_path: Path) -> None:
    image_file(tmp_path / "images" / "a.nii.gz", shape=(2, *SHAPE))
    image_file(tmp_path / "images" / "b.nii", shape=(2, *SHAPE))
    table(tmp_path, "participant_id\tage", "a\t1", "b\t2")
    dataset = find_dataset(tmp_path)
    assert dataset.channels == ["image"]
    assert [subject.images for subject in dataset.subjects] == [
        [tmp_path / "images" / "a.nii.gz"],
        [tmp_path / "images" / "b.nii"],
    ]
    describe(tmp_path, channels=["T1w", "T2w"])
    dataset = find_dataset(tmp_path)
    assert dataset.channels == ["T1w", "T2w"]
    assert load_subject(dataset.subjects[0], dataset.tasks)["image"].shape == (2, *SHAPE)


def test_tasks_inferred_from_columns(folder: Path) -> None:
    table(
        without_labels(folder),
        "participant_id\tage\tlesion\tsite\tcomment\tempty",
        "sub-01\t61.5\tnone\tA\tslept\tn/a",
        "sub-02\tNaN\tfew\tA\tmoved\t",
        "sub-03\t3e1\tnone\tA\tcoughed\tn/a",
    )
    dataset = find_dataset(folder)
    assert dataset.tasks == {
        "age": TaskConfig(kind="regression"),
        "lesion": TaskConfig(kind="classification", classes=["few", "none"]),
    }
    assert [subject.values for subject in dataset.subjects] == [
        {"age": 61.5, "lesion": "none"},
        {"lesion": "few"},
        {"age": 30.0, "lesion": "none"},
    ]
    assert [subject.site for subject in dataset.subjects] == ["A", "A", "A"]
    assert dataset.problems == [
        "column 'comment' of participants.tsv differs for every subject: left out",
        "column 'empty' of participants.tsv has no value: left out",
    ]


def test_a_table_as_other_programs_write_it(folder: Path) -> None:
    (folder / "participants.tsv").write_bytes(
        b'\xef\xbb\xbf"participant_id"\tlesion\tage \r\n\r\n"sub-01"\t none\t61.5\r\nsub-02\tmany\tN/A\r\nsub-03\tfew\t30\r\n'
    )
    assert [subject.values for subject in find_dataset(folder).subjects] == [
        {"lesion": "none", "age": 61.5},
        {"lesion": "many"},
        {"lesion": "few", "age": 30.0},
    ]


def test_missing_channel(folder: Path) -> None:
    (folder / "images" / "sub-02_T2w.nii.gz").unlink()
    fix = "put it there, take sub-02 out of participants.tsv, or list the channels to use in dataset.yaml"
    wanted = f"{folder / 'images'}: sub-02_T2w.nii.gz is missing. Fix: {fix}."
    assert folder_refusal(folder) == wanted
    (folder / "dataset.yaml").write_text(DESCRIPTION.replace("channels: [T1w, T2w]\n", ""))  # known from other subjects
    assert folder_refusal(folder) == wanted


def test_missing_channel_of_the_first_subject_is_not_overlooked(folder: Path) -> None:
    (folder / "dataset.yaml").write_text(DESCRIPTION.replace("channels: [T1w, T2w]\n", ""))
    (folder / "images" / "sub-01_T2w.nii.gz").unlink()
    assert "sub-01_T2w.nii.gz is missing" in folder_refusal(folder)


def test_subject_without_any_image(folder: Path) -> None:
    for path in (folder / "images").glob("sub-02_*"):
        path.unlink()
    assert f"{folder / 'images'}: sub-02_T1w.nii.gz, sub-02_T2w.nii.gz (or sub-02.nii.gz) is missing." in folder_refusal(folder)


def test_no_image_of_any_subject(folder: Path) -> None:
    table(folder, "participant_id\tage", "x\t1", "y\t2")
    describe(folder, tasks={"age": AGE.model_dump()})
    line = f"{folder / 'images'}: no image belongs to a subject of the table. Fix: name them <participant_id>_<channel>.nii.gz."
    assert folder_refusal(folder) == line


def test_two_files_of_one_channel(folder: Path) -> None:
    image_file(folder / "images" / "sub-01_T1w.nii")
    what = "sub-01_T1w.nii and sub-01_T1w.nii.gz are two files of one kind"
    assert folder_refusal(folder) == f"{folder / 'images'}: {what}. Fix: keep one of them."


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("sub-02\t40\tmeny\tA", "participants.tsv: sub-02: lesion = 'meny' is no class. Fix: did you mean 'many'?"),
        ("sub-02\t40\t7\tA", "participants.tsv: sub-02: lesion = '7' is no class. Fix: use one of few, many, none."),
        ("sub-02\told\tfew\tA", "participants.tsv: sub-02: age = 'old' is not a finite number. Fix: correct it, or write n/a."),
        ("sub-02\tinf\tfew\tA", "participants.tsv: sub-02: age = 'inf' is not a finite number. Fix: correct it, or write n/a."),
        ("sub-01\t40\tfew\tA", "participants.tsv: participant_id 'sub-01' stands in two rows. Fix: give each subject one row."),
        ("\t40\tfew\tA", "participants.tsv: participant_id '' is not a name. Fix: name each subject, without a slash."),
        ("../02\t40\tfew\tA", "participants.tsv: participant_id '../02' is not a name."),
        (
            "sub-02\t40\tfew",
            "participants.tsv: the row of 'sub-02' has 3 cells, the header has 4. Fix: separate cells by one tab",
        ),
        ("sub-02\t40\tfew\tA\tB", "participants.tsv: the row of 'sub-02' has 5 cells, the header has 4."),
        ('"sub-02\t40\tfew\tA', "participants.tsv: cannot be read as a table: "),  # a quote that never ends
    ],
)
def test_bad_rows(folder: Path, row: str, words: str) -> None:
    table(folder, "participant_id\tage\tlesion\tsite", "sub-03\t30\tfew\tA", "sub-01\t61.5\tnone\tB", row)
    assert folder_refusal(folder).startswith(f"{folder}/{words}")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "has no column participant_id. Fix: write a header line, tab-separated, with participant_id."),
        (b"participant_id,age\nsub-01,3\n", "has no column participant_id."),
        (b"participant_id\tage\n", "has no subject. Fix: write one row per subject below the header."),
        (b"participant_id\tage\tage\nsub-01\t1\t2\n", "has two columns 'age'. Fix: rename one of them."),
        (b"participant_id\tage\nsub-01\t\xff\n", "cannot be read as a table: "),
    ],
)
def test_bad_tables(folder: Path, content: bytes, words: str) -> None:
    (folder / "participants.tsv").write_bytes(content)
    assert folder_refusal(folder).startswith(f"{folder}/participants.tsv: {words}")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("tasks:", "taks:"), "unknown key 'taks'. Fix: did you mean 'tasks'?"),
        (("unit: years", "unti: years"), "unknown key 'tasks.age.unti'. Fix: did you mean 'unit'?"),
        (("kind: regression", "kind: regresion"), "tasks.age.kind = 'regresion': Input should be 'segmentation'"),
        (("[T1w, T2w]", "[T1w, T1w]"), "channels = ['T1w', 'T1w'] is not a list of different names. Fix: write channels: [T1w"),
        (("[T1w, T2w]", "T1w"), "channels = 'T1w' is not a list of different names."),
        (("[T1w, T2w]", "[T1w"), "is not YAML: "),
        ((DESCRIPTION, "3"), "holds a int, not a mapping. Fix: write `channels:` and `tasks:`."),
        (("[none, few, many]", "[none]"), "task 'lesion' has the classes ['none']. Fix: list at least two different ones"),
        (("[none, few, many]", "[none, few, few]"), "task 'lesion' has the classes ['none', 'few', 'few']."),
        (("classes: [background, grey, white]", "unit: mm"), "task 'tissue' has the classes []."),
        (("  age:", "  agee:"), "task 'agee' is no column of participants.tsv. Fix: did you mean 'age'?"),
        (("  age:", "  a.ge:"), "task name 'a.ge' cannot be used. Fix: name it with letters, digits, _ and - only"),
        (
            ("  tissue:", "  tisue:"),
            "task 'tisue' has no label map of any subject. Fix: put them at labels/<participant_id>_tisue",
        ),
    ],
)
def test_bad_descriptions(folder: Path, change: tuple[str, str], words: str) -> None:
    assert change[0] in DESCRIPTION
    (folder / "dataset.yaml").write_text(DESCRIPTION.replace(*change))
    assert folder_refusal(folder).startswith(f"{folder}/dataset.yaml: {words}")


def test_a_column_without_a_value(folder: Path) -> None:
    path = table(folder, "participant_id\tage\tlesion", *(f"sub-0{i}\tn/a\tfew" for i in (1, 2, 3)))
    assert folder_refusal(folder) == f"{path}: column 'age' has no value. Fix: fill it in, or take the task out."


def test_label_maps_need_a_description(folder: Path) -> None:
    (folder / "dataset.yaml").unlink()
    assert folder_refusal(folder).startswith(f"{folder / 'labels'}: label maps need class names. Fix: write dataset.yaml with ")


def test_a_table_that_holds_no_target(folder: Path) -> None:
    path = table(without_labels(folder), "participant_id\tsite", *(f"sub-0{i}\tA" for i in (1, 2, 3)))
    assert folder_refusal(folder) == f"{path}: holds no target. Fix: add a column per target, or label maps."


def test_no_layout(tmp_path: Path) -> None:
    known = ", or ".join(layout.sign for layout in LAYOUTS.values())
    assert "images/ with participants.tsv" in known and "(Medical Segmentation Decathlon)" in known
    assert folder_refusal(tmp_path) == f"{tmp_path}: no known layout. Fix: it needs {known}."
    (tmp_path / "images").mkdir()
    assert folder_refusal(tmp_path) == f"{tmp_path}: no known layout. Fix: it needs {known}."
    (tmp_path / "images").rmdir()
    table(tmp_path, "participant_id\tage", "a\t1")
    assert folder_refusal(tmp_path) == f"{tmp_path}: no known layout. Fix: it needs {known}."
    absent, file = tmp_path / "absent", tmp_path / "file"
    assert folder_refusal(absent) == f"{absent}: no such folder. Fix: give the folder of a dataset."
    file.touch()
    assert folder_refusal(file) == f"{file}: is not a folder. Fix: give the folder of a dataset, or a .csv table."


# ---- Medical Segmentation Decathlon ----------------------------------------------------------------------------------


@pytest.fixture
def msd(tmp_path: Path) -> Path:
    for i in (2, 1):
        image_file(tmp_path / "imagesTr" / f"brain_{i}.nii.gz")
        label_file(tmp_path / "labelsTr" / f"brain_{i}.nii.gz")
    return change_json(tmp_path)


def pair(name: str, label: str | None = None) -> dict[str, str]:
    return {"image": f"./imagesTr/{name}", "label": f"./labelsTr/{label or name}"}


def change_json(src: Path, **changes: Any) -> Path:
    """Writes a valid dataset.json but for `changes`; None takes a key out."""
    content = {
        "name": "Brain Tumour-2",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "core", "2": "rim"},
        "training": [pair("brain_2.nii.gz"), pair("brain_1.nii.gz")],
        **changes,
    }
    (src / "dataset.json").write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return src


def test_msd(msd: Path) -> None:
    dataset = find_dataset(msd)
    assert (dataset.layout, dataset.channels, dataset.problems) == ("MSD", ["MRI"], [])
    assert dataset.tasks == {"brain_tumour_2": TaskConfig(kind="segmentation", classes=["background", "core", "rim"])}
    assert [subject.subject_id for subject in dataset.subjects] == ["brain_1", "brain_2"]
    first = dataset.subjects[0]
    assert first.images == [msd / "imagesTr" / "brain_1.nii.gz"]
    assert first.labels == {"brain_tumour_2": msd / "labelsTr" / "brain_1.nii.gz"}
    assert load_subject(first, dataset.tasks)["targets"]["brain_tumour_2"].max() == 2


def test_msd_in_the_words_of_nnunet(msd: Path) -> None:
    labels = {"background": 0, "rim": 2, "core": 1}
    dataset = find_dataset(change_json(msd, name=None, modality=None, channel_names={"1": "T2", "0": "T1"}, labels=labels))
    (task,) = dataset.tasks.values()
    assert (dataset.channels, task.classes) == (["T1", "T2"], ["background", "core", "rim"])


def test_msd_subject_without_label(msd: Path) -> None:
    unlabelled = {"image": "imagesTr/brain_1.nii.gz"}
    dataset = find_dataset(change_json(msd, training=[unlabelled, pair("brain_2.nii.gz")]))
    assert [len(subject.labels) for subject in dataset.subjects] == [0, 1]
    assert dataset.problems == ["labelsTr/brain_1.nii.gz is not listed in dataset.json"]


def test_msd_files_that_are_links(msd: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Large data often lie elsewhere."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (msd / "imagesTr").rename(elsewhere / "imagesTr")
    (msd / "imagesTr").symlink_to(elsewhere / "imagesTr")
    assert find_dataset(msd).problems == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"training": [pair("brain_9.nii.gz", "brain_1.nii.gz")]},
            "image './imagesTr/brain_9.nii.gz' is missing. Fix: put the file there, or take the entry out.",
        ),
        ({"training": [pair("brain_1.nii.gz", "brain_9.nii.gz")]}, "label './labelsTr/brain_9.nii.gz' is missing. Fix: put"),
        (
            {"training": [{"image": "../secret.nii.gz"}]},
            "image '../secret.nii.gz' lies outside the dataset. Fix: list only files",
        ),
        ({"training": [{"image": "/etc/secret.nii.gz"}]}, "image '/etc/secret.nii.gz' lies outside the dataset."),
        (
            {"training": [{"image": "imagesTr/brain_1.nii.gz", "label": "imagesTr/../../secret.nii.gz"}]},
            "label 'imagesTr/../../secret.nii.gz' lies outside the dataset.",
        ),
        ({"training": [pair("brain_1.nii.gz")] * 2}, "subject 'brain_1' is listed twice. Fix: list each image once"),
        ({"training": []}, 'lists no training pairs. Fix: write "training": [{'),
        ({"training": None}, "lists no training pairs."),
        ({"training": {"image": "brain_1.nii.gz"}}, "lists no training pairs."),
        ({"training": ["brain_1.nii.gz"]}, "training entry 'brain_1.nii.gz' names no image. Fix: write {\"image\""),
        ({"training": [{"label": "x"}]}, "training entry {'label': 'x'} names no image."),
        ({"labels": None}, 'has no \'labels\'. Fix: write "labels": {"0": ..., "1": ...}, numbered from 0 without gaps.'),
        ({"labels": {"0": "a", "2": "b"}}, "'labels' = {'0': 'a', '2': 'b'} is not numbered from 0 without gaps."),
        ({"labels": {"a": 0, "b": [1, 2]}}, "'labels' = {'a': 0, 'b': [1, 2]} is not numbered from 0 without gaps."),
        ({"labels": {"0": "a", "1": "a"}}, "'labels' = {'0': 'a', '1': 'a'} gives one name twice."),
        ({"labels": {"0": "background"}}, "'labels' names one class, 'background'."),
        ({"modality": {"1": "MRI"}}, "'modality' = {'1': 'MRI'} is not numbered from 0 without gaps."),
    ],
)
def test_bad_msd(msd: Path, changes: dict[str, Any], words: str) -> None:
    (msd.parent / "secret.nii.gz").touch()  # it is there: not listing it is what protects it
    assert folder_refusal(change_json(msd, **changes)).startswith(f"{msd}/dataset.json: {words}")


@pytest.mark.parametrize(("content", "words"), [("{", "is not JSON: "), ("[]", "is not an object."), ("\udcff", "is not JSON: ")])
def test_bad_json(msd: Path, content: str, words: str) -> None:
    (msd / "dataset.json").write_bytes(content.encode(errors="surrogateescape"))
    assert folder_refusal(msd).startswith(f"{msd}/dataset.json: {words}")


# ---- real data -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hippocampus() -> Dataset:
    if not (REAL / "dataset.json").is_file():
        pytest.skip(f"no {REAL}: set MRI_DS_REAL_DATA to the folder that holds Task04_Hippocampus")
    return find_dataset(REAL)


def test_hippocampus_has_208_subjects_and_two_orphans(hippocampus: Dataset) -> None:
    assert (hippocampus.layout, hippocampus.channels) == ("MSD", ["MRI"])
    assert hippocampus.tasks["hippocampus"].classes == ["background", "Anterior", "Posterior"]
    assert len(hippocampus.subjects) == 208
    assert all(set(subject.labels) == {"hippocampus"} for subject in hippocampus.subjects)
    assert len(hippocampus.problems) == 2
    assert all(line.endswith("is not listed in dataset.json") for line in hippocampus.problems)


def test_every_fifth_hippocampus_is_fold_0(hippocampus: Dataset) -> None:
    ids = [subject.subject_id for subject in hippocampus.subjects]
    folds = assign_folds(ids)
    assert [subject for subject in ids if folds[subject] == 0] == sorted(ids)[::5]


def test_some_hippocampi_can_be_loaded(hippocampus: Dataset) -> None:
    for files in hippocampus.subjects[::40]:
        sample = load_subject(files, hippocampus.tasks)
        label = sample["targets"]["hippocampus"]
        assert sample["image"].shape[1:] == label.shape
        assert set(np.unique(label)) == {0, 1, 2}
        np.testing.assert_allclose(sample["spacing_mm"], 1)
