"""A table of files: any place on disk, patients kept together, every bad cell one line."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mri_ds.config import TaskConfig
from mri_ds.data.layouts import find_dataset, load_subject
from mri_ds.data.nifti import write_image, write_label
from mri_ds.data.shards import split_subjects
from mri_ds.errors import InputError

SHAPE = (5, 6, 7)
HEADER = "subject,patient,image:T1w,image:FLAIR,label:tissue,age,grade"
ROWS = (
    "s1b,p1,v2/t1.nii.gz,v2/flair.nii.gz,,62.5,many",
    "s1a,p1,v1/t1.nii.gz,v1/flair.nii.gz,v1/seg.nii.gz,61.5,few",
    "s2,p2,v3/t1.nii.gz,v3/flair.nii.gz,v3/seg.nii.gz,n/a,few",
)
TASKS = """\
tasks:
  tissue: {kind: segmentation, classes: [background, grey, white]}
  grade: {kind: classification, classes: [none, few, many]}
  age: {kind: regression, unit: years}
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    for visit in ("v1", "v2", "v3"):
        for name in ("t1", "flair"):
            image(tmp_path / visit / f"{name}.nii.gz")
        if visit != "v2":
            write_label(tmp_path / visit / "seg.nii.gz", np.arange(np.prod(SHAPE)).reshape(SHAPE) % 3, np.eye(4))
    (tmp_path / "subjects.yaml").write_text(TASKS)
    return write(tmp_path / "subjects.csv", HEADER, *ROWS)


def image(path: Path, shape: tuple[int, ...] = SHAPE) -> None:
    write_image(path, np.random.default_rng(len(str(path))).normal(size=shape).astype(np.float32), np.eye(4))


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value) and " Fix: " in str(caught.value)
    return str(caught.value)


def test_rows_are_subjects(table: Path) -> None:
    dataset = find_dataset(table)
    assert (dataset.layout, dataset.channels, dataset.problems) == ("CSV", ["T1w", "FLAIR"], [])
    assert dataset.tasks["tissue"].classes == ["background", "grey", "white"]
    first, second, third = dataset.subjects
    assert [subject.subject_id for subject in dataset.subjects] == ["s1a", "s1b", "s2"]
    assert first.images == [table.parent / "v1" / "t1.nii.gz", table.parent / "v1" / "flair.nii.gz"]
    assert first.labels == {"tissue": table.parent / "v1" / "seg.nii.gz"}
    assert (first.values, third.values) == ({"age": 61.5, "grade": "few"}, {"grade": "few"})
    assert second.labels == {}
    sample = load_subject(first, dataset.tasks)
    assert sample["image"].shape == (2, *SHAPE) and sample["targets"]["grade"] == 1


def test_no_split_divides_a_patient(table: Path) -> None:
    dataset = find_dataset(table)
    for fold in range(2):
        splits = split_subjects(dataset, num_folds=2, fold=fold)
        groups = [{subject.patient_id for subject in part} for part in splits.values()]
        assert groups[0].isdisjoint(groups[1]) and set.union(*groups) == {"p1", "p2"}
        assert sum(len(part) for part in splits.values()) == 3


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_delimiters(table: Path, delimiter: str) -> None:
    expected = find_dataset(table)
    table.write_text(table.read_text().replace(",", delimiter))
    assert find_dataset(table) == expected


def test_absolute_paths_are_taken_as_they_are(table: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "t1.nii.gz"
    image(elsewhere)
    write(table, HEADER, ROWS[0].replace("v2/t1.nii.gz", str(elsewhere)), *ROWS[1:])
    dataset = find_dataset(table)
    assert dataset.subjects[1].images[0] == elsewhere
    assert dataset.problems == ["v2/t1.nii.gz is in no row of subjects.csv"]  # and nothing of the folder elsewhere


def test_one_image_column_holds_one_channel_or_all(tmp_path: Path) -> None:
    for name in ("a", "b"):
        image(tmp_path / f"{name}.nii.gz", (2, *SHAPE))
    image(tmp_path / "orphan.nii.gz")
    table = write(tmp_path / "t.csv", "subject,image,age", "a,a.nii.gz,3", "b,b.nii.gz,4")
    dataset = find_dataset(table)
    assert (dataset.channels, dataset.problems) == (["image"], ["orphan.nii.gz is in no row of t.csv"])
    (tmp_path / "t.yaml").write_text("channels: [T1w, T2w]\n")
    dataset = find_dataset(table)
    assert dataset.channels == ["T1w", "T2w"]
    assert load_subject(dataset.subjects[0], dataset.tasks)["image"].shape == (2, *SHAPE)


def test_targets_are_inferred_where_nothing_describes_them(tmp_path: Path) -> None:
    for name in "abc":
        image(tmp_path / f"{name}.nii.gz")
    table = write(
        tmp_path / "t.csv",
        "subject,patient,image,age,sex,stage,MRN,remark,date of scan",
        "a,p,a.nii.gz,61,1,low,1001,moved,2020",
        "b,p,b.nii.gz,62,1,low,1001,moved,2021",
        "c,q,c.nii.gz,n/a,2,high,1002,slept,2022",
    )
    (tmp_path / "t.json").write_text(json.dumps({"sex": {"Levels": {"1": "male", "2": "female"}}, "age": {"Units": "years"}}))
    dataset = find_dataset(table)
    assert dataset.tasks == {
        "age": TaskConfig(kind="regression", unit="years"),
        "sex": TaskConfig(kind="classification", classes=["1", "2"]),
    }
    assert dataset.problems == [
        "column 'stage' of t.csv differs for every subject: left out",  # low is patient p's alone, high q's
        "column 'MRN' of t.csv may identify a person: left out",
        "column 'remark' of t.csv differs for every subject: left out",
        "column 'date of scan' of t.csv has a name with more than letters, digits, _ and -: left out",
    ]


def test_columns_that_the_description_leaves_out(table: Path) -> None:
    (table.parent / "subjects.yaml").write_text("channels: [FLAIR]\ntasks: {age: {kind: regression}}\n")
    dataset = find_dataset(table)
    assert (dataset.channels, list(dataset.tasks)) == (["FLAIR"], ["age"])
    assert [len(subject.images) for subject in dataset.subjects] == [1, 1, 1]
    assert dataset.problems == ["column 'label:tissue' is no task of subjects.yaml: left out"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("subject,", "case,", "has no column subject. Fix: write a header line, comma-separated, with subject."),
        ("image:T1w", "image:", "column 'image:' is of no kind. Fix: write image:CHANNEL, label:TASK or series:CHANNEL."),
        ("image:T1w", "mask:T1w", "column 'mask:T1w' is of no kind."),
        ("image:T1w", "image", "has both an image column and image:CHANNEL columns."),
        ("image:T1w,image:FLAIR", "t1,flair", "has no image column."),
        (",age,", ",grade,", "has two columns 'grade'."),
        ("s1a,", "s2,", "subject 's2' stands in two rows."),
        ("s1a,", "s/1a,", "subject 's/1a' is not a name."),
        ("s1a,", ",", "subject '' is not a name."),
        ("s1a,", "s\x1b[31m,", "subject 's\\x1b[31m' is not a name."),
        (",62.5,many", ",62.5,many,", "the row of 's1b' has 8 cells, the header has 7."),
        ("v1/t1.nii.gz", "v1/t9.nii.gz", ": s1a: image:T1w = 'v1/t9.nii.gz' is missing. Fix: put the file there"),
        ("v1/t1.nii.gz", "n/a", ": s1a: image:T1w is empty. Fix: give its path, or take the row out."),
        (
            "v1/t1.nii.gz",
            "v1/../../t1.nii.gz",
            ": s1a: image:T1w = 'v1/../../t1.nii.gz' leaves the table's folder. Fix: give an abs",
        ),
        ("v1/t1.nii.gz", "v1/t\x001.nii.gz", ": s1a: image:T1w = "),
        ("v1/seg.nii.gz", "../seg.nii.gz", ": s1a: label:tissue = '../seg.nii.gz' leaves the table's folder."),
        ("v1/seg.nii.gz", "seg.nii.gz", ": s1a: label:tissue = 'seg.nii.gz' is missing."),
        (",61.5,few", ",old,few", ": s1a: age = 'old' is not a finite number. Fix: correct it, or write n/a."),
        (",61.5,few", ",61.5,fw", ": s1a: grade = 'fw' is no class. Fix: did you mean 'few'?"),
        ("s1a,", '"s1a,', "cannot be read as a table: "),
    ],
)
def test_bad_tables(table: Path, old: str, new: str, words: str) -> None:
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new))
    line = refusal(lambda: find_dataset(table))
    assert line.startswith(f"{table}{words}" if words.startswith(":") else f"{table}: {words}")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("  tissue:", "  vessel:", "task 'vessel' has no column label:vessel. Fix: use one of tissue."),
        ("  age:", "  agee:", "task 'agee' is no column of subjects.csv. Fix: did you mean 'age'?"),
        ("tasks:", "channels: [T2w]\ntasks:", "channel 'T2w' is no column image:T2w. Fix: did you mean 'T1w'?"),
        ("[none, few, many]", "[none]", "task 'grade' has the classes ['none']."),
        ("tasks:", "taks:", "unknown key 'taks'."),
    ],
)
def test_bad_descriptions(table: Path, old: str, new: str, words: str) -> None:
    where = table.with_suffix(".yaml")
    where.write_text(TASKS.replace(old, new))
    assert refusal(lambda: find_dataset(table)).startswith(f"{where}: {words}")


def test_label_maps_need_class_names(table: Path) -> None:
    table.with_suffix(".yaml").unlink()
    line = refusal(lambda: find_dataset(table))
    assert line.startswith(f"{table}: label maps need class names. Fix: write subjects.yaml beside it, with tasks: ")


def test_a_table_without_targets(tmp_path: Path) -> None:
    image(tmp_path / "a.nii.gz")
    table = write(tmp_path / "t.csv", "subject,image", "a,a.nii.gz")
    assert (
        refusal(lambda: find_dataset(table)) == f"{table}: holds no target. Fix: add a column per target, or label:TASK columns."
    )


def test_a_table_too_large_to_be_one(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    with table.open("wb") as file:
        file.truncate(2**26 + 1)  # sparse: nothing is written, and nothing may be read
    assert f"{table}: has over 67108864 bytes." in refusal(lambda: find_dataset(table))
