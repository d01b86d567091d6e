"""BIDS: sessions, runs, derivatives, tables; what is left out and why; what is refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mri_ds.config import TaskConfig
from mri_ds.data.layouts import describe, find_dataset, load_subject
from mri_ds.data.layouts.bids_names import parse
from mri_ds.data.nifti import write_image, write_label
from mri_ds.data.shards import split_subjects
from mri_ds.errors import InputError

SHAPE = (5, 6, 7)


def image(path: Path) -> Path:
    write_image(path, np.random.default_rng(len(str(path))).normal(size=SHAPE).astype(np.float32), np.eye(4))
    return path


def label(path: Path, highest: int = 1) -> Path:
    write_label(path, np.arange(np.prod(SHAPE)).reshape(SHAPE) % (highest + 1), np.eye(4))
    return path


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value) and " Fix: " in str(caught.value)
    return str(caught.value)


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    """Three subjects without sessions: T1w, FLAIR, a lesion mask (not of sub-02), age, group and sex."""
    src = tmp_path / "study"
    for sub in ("sub-01", "sub-02", "sub-03"):
        for suffix in ("T1w", "FLAIR"):
            image(src / sub / "anat" / f"{sub}_{suffix}.nii.gz")
        if sub != "sub-02":
            label(src / "derivatives" / "manual" / sub / "anat" / f"{sub}_label-lesion_mask.nii.gz")
    write(src / "dataset_description.json", '{"Name": "Study of Jane Doe", "BIDSVersion": "1.10.0"}')
    write(
        src / "participants.tsv",
        "participant_id\tage\tgroup\tsex",
        "sub-03\t30\tpatient\t2",
        "sub-01\t61.5\tcontrol\t1",
        "sub-02\tn/a\tpatient\tn/a",
    )
    dictionary = {"sex": {"Levels": {"1": "male", "2": "female"}}, "age": {"Description": "at scan", "Units": "years"}}
    write(src / "participants.json", json.dumps(dictionary))
    return src


@pytest.fixture
def sessions(tmp_path: Path) -> Path:
    """Two subjects of two sessions each, the first of them with two runs of T1w and one of FLAIR."""
    src = tmp_path / "study"
    for sub in ("sub-a", "sub-b"):
        for ses in ("ses-1", "ses-2"):
            anat = src / sub / ses / "anat"
            runs = ("_run-1", "_run-2") if (sub, ses) == ("sub-a", "ses-1") else ("",)
            for run in runs:
                image(anat / f"{sub}_{ses}{run}_T1w.nii.gz")
            image(anat / f"{sub}_{ses}_FLAIR.nii.gz")
    write(src / "participants.tsv", "participant_id\tsex\tscore", "sub-a\tf\t1", "sub-b\tm\t2")
    write(src / "sub-a" / "sub-a_sessions.tsv", "session_id\tage\tscore", "ses-1\t60\tn/a", "ses-2\t61\t9")
    return src


def test_subjects_images_maps_and_targets(bids: Path) -> None:
    dataset = find_dataset(bids)
    assert (dataset.layout, dataset.channels, dataset.problems) == ("BIDS", ["FLAIR", "T1w"], [])
    assert dataset.tasks == {
        "lesion": TaskConfig(kind="segmentation", classes=["background", "lesion"]),
        "age": TaskConfig(kind="regression", unit="years"),
        "group": TaskConfig(kind="classification", classes=["control", "patient"]),
        "sex": TaskConfig(kind="classification", classes=["1", "2"]),
    }
    first, second, _ = dataset.subjects
    assert first.subject_id == "sub-01"
    assert first.images == [bids / "sub-01" / "anat" / f"sub-01_{suffix}.nii.gz" for suffix in ("FLAIR", "T1w")]
    assert list(first.labels) == ["lesion"] and first.values == {"age": 61.5, "group": "control", "sex": "1"}
    assert (second.labels, second.values) == ({}, {"group": "patient"})
    sample = load_subject(first, dataset.tasks)
    assert sample["targets"]["lesion"].max() == 1 and sample["targets"]["sex"] == 0
    assert describe(dataset) == (
        "BIDS layout: 3 subjects; channels FLAIR, T1w; "
        "tasks lesion (segmentation), age (regression), group (classification), sex (classification)"
    )


def test_sessions_and_runs_are_samples_of_one_patient(sessions: Path) -> None:
    dataset = find_dataset(sessions)
    ids = ["sub-a_ses-1_run-1", "sub-a_ses-1_run-2", "sub-a_ses-2", "sub-b_ses-1", "sub-b_ses-2"]
    assert [subject.subject_id for subject in dataset.subjects] == ids
    assert [subject.patient_id for subject in dataset.subjects] == ["sub-a"] * 3 + ["sub-b"] * 2
    names = [[path.name for path in subject.images] for subject in dataset.subjects[:2]]
    assert names == [["sub-a_ses-1_FLAIR.nii.gz", f"sub-a_ses-1_run-{run}_T1w.nii.gz"] for run in (1, 2)]
    for fold in range(2):
        splits = split_subjects(dataset, num_folds=2, fold=fold)
        assert {len({s.patient_id for s in part}) for part in splits.values()} == {1}
        assert sum(len(part) for part in splits.values()) == 5
    assert "5 subjects of 2 patients" in describe(dataset)


def test_targets_of_a_session_win_over_its_subjects(sessions: Path) -> None:
    """sub-a: age from its sessions alone; score 1 but for session 2. sub-b has no sessions.tsv."""
    values = {subject.subject_id: subject.values for subject in find_dataset(sessions).subjects}
    assert values["sub-a_ses-1_run-2"] == {"score": 1.0, "age": 60.0}
    assert values["sub-a_ses-2"] == {"score": 9.0, "age": 61.0}
    assert values["sub-b_ses-1"] == {"score": 2.0}


def test_what_only_one_patient_is_called_is_no_class(sessions: Path) -> None:
    """f stands in three rows, all of sub-a: no class to learn, but someone's own word."""
    dataset = find_dataset(sessions)
    assert list(dataset.tasks) == ["score", "age"]
    assert "column 'sex' of participants.tsv differs for every subject: left out" in dataset.problems


def test_what_names_a_person_is_left_out(bids: Path) -> None:
    rows = ("sub-01\t8801\tDoe\t1961\t3", "sub-02\t8802\tDoe\t1961\t4", "sub-03\t8803\tRoe\t1962\t5")
    write(bids / "participants.tsv", "participant_id\tpatient_id\tlastName\tdate_of_birth\tscore", *rows)
    dataset = find_dataset(bids)
    assert list(dataset.tasks) == ["lesion", "score"]
    assert [line for line in dataset.problems if "may identify a person" in line] == [
        f"column {name!r} of participants.tsv may identify a person: left out"
        for name in ("patient_id", "lastName", "date_of_birth")
    ]


def test_a_level_that_the_dictionary_does_not_list(bids: Path) -> None:
    write(bids / "participants.json", json.dumps({"group": {"Levels": {"control": "", "case": ""}}}))
    dataset = find_dataset(bids)
    assert "group" not in dataset.tasks
    assert (
        "column 'group' of participants.tsv holds 'patient', which its data dictionary does not list: left out"
        in dataset.problems
    )


def test_channels_are_the_kinds_that_all_have(bids: Path) -> None:
    (bids / "sub-02" / "anat" / "sub-02_FLAIR.nii.gz").unlink()
    dataset = find_dataset(bids)
    assert dataset.channels == ["T1w"] and len(dataset.subjects) == 3
    assert dataset.problems == [f"sub-0{i}/anat/sub-0{i}_FLAIR.nii.gz is no channel of a sample" for i in (1, 3)]


def test_the_description_names_channels_and_leaves_out_who_lacks_one(bids: Path) -> None:
    (bids / "sub-02" / "anat" / "sub-02_FLAIR.nii.gz").unlink()
    write(bids / "dataset.yaml", "channels: [T1w, FLAIR]", "tasks: {age: {kind: regression}}")
    dataset = find_dataset(bids)
    assert (dataset.channels, list(dataset.tasks)) == (["T1w", "FLAIR"], ["age"])
    assert [subject.subject_id for subject in dataset.subjects] == ["sub-01", "sub-03"]
    assert dataset.problems == [
        "sub-02 has no FLAIR: left out",
        "sub-02/anat/sub-02_T1w.nii.gz is no channel of a sample",
        "sub-02 of participants.tsv has no complete images",
        "derivatives hold label maps 'lesion', no task of dataset.yaml",
    ]


def test_a_channel_is_all_that_a_name_says(bids: Path) -> None:
    """Two T1w of each: without and with contrast. A bare suffix is enough where there is one of it."""
    for sub in ("sub-01", "sub-02", "sub-03"):
        image(bids / sub / "anat" / f"{sub}_ce-gd_T1w.nii.gz")
        (bids / sub / "anat" / f"{sub}_FLAIR.nii.gz").rename(bids / sub / "anat" / f"{sub}_acq-{sub[4:]}_FLAIR.nii.gz")
    assert find_dataset(bids).channels == ["T1w", "ce-gd_T1w"]
    write(bids / "dataset.yaml", "channels: [ce-gd_T1w, FLAIR]")
    dataset = find_dataset(bids)
    assert [path.name for path in dataset.subjects[0].images] == ["sub-01_ce-gd_T1w.nii.gz", "sub-01_acq-01_FLAIR.nii.gz"]


def test_classes_of_a_segmentation_stand_in_its_table(bids: Path) -> None:
    pipeline = bids / "derivatives" / "seg"
    for sub in ("sub-01", "sub-02"):
        label(pipeline / sub / "anat" / f"{sub}_space-orig_desc-tissue_dseg.nii.gz", highest=2)
    assert any("'tissue' of seg has no look-up table" in line for line in find_dataset(bids).problems)
    write(bids / "dseg.tsv", "index\tname", "0\tbackground", "1\twrong", "2\ttable")
    assert find_dataset(bids).tasks["tissue"].classes == ["background", "wrong", "table"]
    write(pipeline / "desc-tissue_dseg.tsv", "index\tname\tcolor", "2\twhite\t#fff", "1\tgrey\t#888")  # nearer, and 0 not said
    dataset = find_dataset(bids)
    assert dataset.tasks["tissue"] == TaskConfig(kind="segmentation", classes=["background", "grey", "white"])
    assert load_subject(dataset.subjects[1], dataset.tasks)["targets"]["tissue"].max() == 2
    write(pipeline / "sub-02" / "anat" / "sub-02_desc-tissue_dseg.tsv", "index\tname", "1\twhite", "2\tgrey")
    assert any("'tissue' of seg has look-up tables that differ" in line for line in find_dataset(bids).problems)


def test_a_table_with_gaps_leaves_its_maps_out(bids: Path) -> None:
    label(bids / "derivatives" / "fs" / "sub-01" / "anat" / "sub-01_desc-aseg_dseg.nii.gz")
    table = write(
        bids / "derivatives" / "fs" / "desc-aseg_dseg.tsv", "index\tname", "0\tUnknown", "2\tLeft-Cerebral-White-Matter"
    )
    dataset = find_dataset(bids)
    assert "aseg" not in dataset.tasks
    (line,) = dataset.problems
    assert line.startswith(
        f"label map 'aseg' of fs has a look-up table that cannot be used: {table}: is not numbered without gaps."
    )


def test_maps_that_are_left_out_are_listed(bids: Path) -> None:
    anat = bids / "derivatives" / "prep" / "sub-01" / "anat"
    label(anat / "sub-01_space-MNI152NLin2009cAsym_desc-brain_mask.nii.gz")
    image(anat / "sub-01_desc-preproc_T1w.nii.gz")
    label(anat / "sub-02_desc-brain_mask.nii.gz")
    label(bids / "derivatives" / "prep" / "sub-09" / "anat" / "sub-09_desc-brain_mask.nii.gz")
    image(bids / "sub-01" / "anat" / "T1.nii.gz")
    image(bids / "sub-01" / "func" / "sub-01_task-rest_bold.nii.gz")  # of another kind of data: none of ours
    assert find_dataset(bids).problems == [
        "sub-01/anat/T1.nii.gz is not named by its folders",
        "derivatives/prep/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz is no label map (dseg, mask)",
        "derivatives/prep/sub-01/anat/sub-01_space-MNI152NLin2009cAsym_desc-brain_mask.nii.gz "
        "lies in space MNI152NLin2009cAsym, not on the image's grid",
        "derivatives/prep/sub-01/anat/sub-02_desc-brain_mask.nii.gz is not named by its folders",
        "derivatives/prep/sub-09/anat/sub-09_desc-brain_mask.nii.gz belongs to no complete sample",
    ]


def test_one_name_in_two_pipelines(bids: Path) -> None:
    label(bids / "derivatives" / "auto" / "sub-01" / "anat" / "sub-01_label-lesion_mask.nii.gz")
    assert {name for name, task in find_dataset(bids).tasks.items() if task.kind == "segmentation"} == {
        "auto-lesion",
        "manual-lesion",
    }


def test_maps_of_a_run(sessions: Path) -> None:
    anat = sessions / "derivatives" / "m" / "sub-a" / "ses-1" / "anat"
    label(anat / "sub-a_ses-1_run-2_desc-brain_mask.nii.gz")
    label(anat.parents[1] / "ses-2" / "anat" / "sub-a_ses-2_desc-brain_mask.nii.gz")
    dataset = find_dataset(sessions)
    assert [subject.subject_id for subject in dataset.subjects if subject.labels] == ["sub-a_ses-1_run-2", "sub-a_ses-2"]
    label(anat / "sub-a_ses-1_desc-brain_mask.nii.gz")
    where = "derivatives/m/sub-a/ses-1/anat/sub-a_ses-1_desc-brain_mask.nii.gz"
    assert f"{where} does not say of which run it is" in find_dataset(sessions).problems


def test_two_maps_of_one_task(bids: Path) -> None:
    folder = bids / "derivatives" / "manual" / "sub-01" / "anat"
    label(folder / "sub-01_space-orig_label-lesion_mask.nii.gz")
    names = "sub-01_label-lesion_mask.nii.gz and sub-01_space-orig_label-lesion_mask.nii.gz"
    assert refusal(lambda: find_dataset(bids)).startswith(f"{folder}: {names} are two label maps of task 'lesion'. Fix: keep one")


def test_two_files_of_one_scan(bids: Path) -> None:
    image(bids / "sub-01" / "anat" / "sub-01_T1w.nii")
    words = "sub-01_T1w.nii and sub-01_T1w.nii.gz are two files of one scan. Fix: keep one of them."
    assert refusal(lambda: find_dataset(bids)) == f"{bids}/sub-01/anat: {words}"


def test_participants_without_images(bids: Path) -> None:
    with (bids / "participants.tsv").open("a") as file:
        file.write("sub-77\t50\tpatient\t1\n")
    assert find_dataset(bids).problems == ["sub-77 of participants.tsv has no complete images"]


def test_ids_without_their_prefix(bids: Path) -> None:
    table = bids / "participants.tsv"
    table.write_text(table.read_text().replace("sub-", ""))
    assert find_dataset(bids).subjects[0].values["age"] == 61.5


def test_a_link_whose_content_was_not_fetched(bids: Path) -> None:
    """As DataLad leaves it: the name is there, the file is not."""
    path = bids / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    path.unlink()
    path.symlink_to("../../.git/annex/objects/xx")
    dataset = find_dataset(bids)
    line = refusal(lambda: load_subject(dataset.subjects[0], dataset.tasks))
    assert line.startswith(f"{path}: is a link to a file that is not here. Fix: fetch what it points to")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("participants.tsv", "participant_id,age\nsub-01,3\n", "has no column participant_id."),
        ("participants.tsv", "participant_id\tage\nsub-01\t3\nsub-01\t4\n", "participant_id 'sub-01' stands in two rows."),
        ("participants.tsv", "participant_id\tage\nsub-01\t3\t4\n", "the row of 'sub-01' has 3 cells, the header has 2."),
        ("participants.json", "{", "is not JSON: "),
        ("participants.json", "[" * 100_000, "is not JSON: "),
        ("participants.json", "[]", "is not an object."),
        ("sub-01/sub-01_sessions.tsv", "session\nses-1\n", "has no column session_id."),
        ("dataset.yaml", "channels: [T1w\n", "is not YAML: "),
        ("dataset.yaml", "tasks: {age: {kind: regresion}}\n", "tasks.age.kind = 'regresion': "),
        (
            "dataset.yaml",
            "tasks: {agee: {kind: regression}}\n",
            "task 'agee' is no column of participants.tsv. Fix: did you mean",
        ),
        (
            "dataset.yaml",
            "tasks: {tumour: {kind: segmentation, classes: [background, tumour]}}\n",
            "task 'tumour' has no label map below derivatives/. Fix: name it as its files' label or desc says (found there: lesi",
        ),
        (
            "dataset.yaml",
            "tasks: {lesion: {kind: segmentation, classes: [lesion]}}\n",
            "task 'lesion' has the classes ['lesion'].",
        ),
    ],
)
def test_bad_tables_and_descriptions(bids: Path, file: str, content: str, words: str) -> None:
    (bids / file).write_text(content)
    assert refusal(lambda: find_dataset(bids)).startswith(f"{bids / file}: {words}")


def test_bad_cells(bids: Path) -> None:
    write(bids / "dataset.yaml", "tasks: {age: {kind: regression}, group: {kind: classification, classes: [control, patient]}}")
    table = bids / "participants.tsv"
    good = table.read_text()
    table.write_text(good.replace("61.5", "inf"))
    assert refusal(lambda: find_dataset(bids)).startswith(f"{table}: sub-01: age = 'inf' is not a finite number.")
    table.write_text(good.replace("control", "contrl"))
    assert refusal(lambda: find_dataset(bids)).startswith(f"{table}: sub-01: group = 'contrl' is no class. Fix: did you mean")


def test_no_common_channel(bids: Path) -> None:
    (bids / "sub-01" / "anat" / "sub-01_T1w.nii.gz").unlink()
    (bids / "sub-02" / "anat" / "sub-02_FLAIR.nii.gz").unlink()
    assert refusal(lambda: find_dataset(bids)).startswith(f"{bids}: no kind of image is there for every subject. Fix: write")
    write(bids / "dataset.yaml", "channels: [T2w]")
    assert refusal(lambda: find_dataset(bids)).startswith(f"{bids}: no subject has T2w. Fix: name channels that exist")


def test_no_target(bids: Path) -> None:
    (bids / "participants.tsv").unlink()
    for path in bids.glob("derivatives/*/*/anat/*"):
        path.rename(path.with_name(path.name.replace("label-lesion_mask", "dseg")))
    words = "holds no target (label map 'dseg' of manual has no look-up table (*_dseg.tsv with index and name): left out)"
    assert refusal(lambda: find_dataset(bids)).startswith(f"{bids}: {words}. Fix: add columns to participants.tsv")


def test_empty_folders(tmp_path: Path) -> None:
    (tmp_path / "sub-01" / "anat").mkdir(parents=True)
    assert refusal(lambda: find_dataset(tmp_path)).startswith(f"{tmp_path}: no kind of image is there")


@pytest.mark.parametrize(
    "name",
    [
        "T1w.nii.gz",
        "sub-01.nii.gz",
        "sub-01_T1w.txt",
        "sub_T1w.nii.gz",
        "sub-01_sub-02_T1w.nii.gz",
        "sub-01__T1w.nii",
        "01_T1w.nii",
    ],
)
def test_names_that_are_not_bids(name: str) -> None:
    assert parse(Path(name)) is None
