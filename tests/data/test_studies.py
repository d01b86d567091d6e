"""DICOM studies as subjects: which of their series become channels, and how a dataset of them is found."""

import shutil
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")

import dicom_builder as build  # noqa: E402

from mri_ds.config import DataConfig, RunConfig, TaskConfig  # noqa: E402
from mri_ds.data.dicom import list_series, read_dicom  # noqa: E402
from mri_ds.data.layouts import find_dataset, load_subject  # noqa: E402
from mri_ds.data.layouts.studies import parse_series, series_of_channels  # noqa: E402
from mri_ds.data.shards import encode_subject, read_manifest, write_shards  # noqa: E402
from mri_ds.errors import InputError  # noqa: E402
from mri_ds.inference.predict import predict_file  # noqa: E402
from mri_ds.inference.run import Run  # noqa: E402

VALUES = build.voxels()


def described(text: str, values: np.ndarray, **head: object) -> list[pydicom.Dataset]:
    made = build.series(values, **head)
    for ds in made:
        ds.SeriesDescription = text
    return made


def make_study(folder: Path, shift: int = 0, *, names=("AX T1 post", "AX FLAIR")) -> Path:
    """A localiser and two series, whose numbers differ from study to study."""
    localiser = described(f"loc {names[0]}", build.voxels((6, 5, 3)) + 1, number=1 + shift)
    for ds in localiser:
        ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    one = described(names[0], VALUES + shift, number=4 + shift)
    two = described(names[1], VALUES + 500 + shift, number=7 + 2 * shift)
    return build.save([*localiser, *one, *two], folder)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    return make_study(tmp_path_factory.mktemp("study") / "in")


@pytest.fixture
def hospital(tmp_path) -> Path:
    """Four subjects: folders, and one zip; the second was scanned where series have other names."""
    src = tmp_path / "hospital"
    for i, subject in enumerate("abcd"):
        names = ("T1W_GADO", "tirm_dark-fluid") if subject == "b" else ("AX T1 post", "AX FLAIR")
        make_study(src / "images" / subject, i, names=names)
    with zipfile.ZipFile(src / "images" / "d.zip", "w") as archive:
        for file in (src / "images" / "d").iterdir():
            archive.write(file, file.name)
    shutil.rmtree(src / "images" / "d")
    (src / "participants.tsv").write_text("participant_id\tage\tsite\na\t50\tnorth\nb\t60\tsouth\nc\t70\tnorth\nd\t80\tn/a\n")
    return src


SERIES = {"T1w": "*t1 post*|*gado*", "FLAIR": "*flair*|*tirm*"}

# ---- one study -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wish", ["AX FLAIR", "ax flair", "*flair*", "*FL?IR", "7", "nothing|*flair*", "nothing | 7 "])
def test_a_series_by_what_it_calls_itself(study, wish):
    np.testing.assert_array_equal(read_dicom(study, series=[wish])[0].voxels[0], VALUES + 500)


def test_a_series_by_part_of_its_uid(tmp_path):
    folder = build.save(
        build.series(VALUES, uid="1.2.3.4.5", number=1) + build.series(VALUES + 1, uid="1.2.9.4.5", number=2), tmp_path
    )
    np.testing.assert_array_equal(read_dicom(folder, series="*.9.4.5")[0].voxels[0], VALUES + 1)


def test_a_localiser_only_by_its_number_or_alone(study):
    np.testing.assert_array_equal(read_dicom(study, series="*t1*")[0].voxels[0], VALUES)
    with pytest.raises(InputError, match="is a localiser"):
        read_dicom(study, series="loc*")


def test_a_pattern_that_finds_none_or_several(study):
    with pytest.raises(InputError, match=r"2 series are AX\*: 4 \(5 of 12 x 10, .*\), 7 \(.*Fix: narrow the pattern"):
        read_dicom(study, series="AX*")
    with pytest.raises(InputError, match=r"no series \*dwi\*. Fix: choose from 1 \(.*localiser\), 4 \("):
        read_dicom(study, series="*dwi*")
    with pytest.raises(InputError, match="no series of that UID"):
        read_dicom(study, series="1.2.840.99999.12345.*")
    with pytest.raises(InputError, match="one twice"):
        read_dicom(study, series=["4", "*post*"])


def test_a_description_is_listed_where_it_names_nobody(tmp_path):
    made = [
        described("Quillon knee", VALUES, number=1),
        described("T1 (post)", VALUES, number=2),
        described("20200102 T1", VALUES, number=3),
    ]
    for ds in (ds for one in made for ds in one):
        ds.PatientName = "Zyxwarth^Quillon"
    listed = list_series(build.save([ds for one in made for ds in one], tmp_path / "in"))
    assert [(one.key, one.description) for one in listed] == [("1", ""), ("2", "T1 (POST)"), ("3", "")]
    assert (listed[1].columns, listed[1].rows, listed[1].num_frames, listed[1].is_localiser) == (12, 10, 5, False)
    with pytest.raises(InputError) as caught:
        read_dicom(tmp_path / "in")
    assert "POST" not in str(caught.value), "errors end up in manifests: no description in them"


# ---- a dataset of studies --------------------------------------------------------------------------------------------


def test_studies_of_a_folder(hospital):
    found = find_dataset(hospital, series=SERIES)
    assert found.channels == ["T1w", "FLAIR"] and found.problems == [] and list(found.tasks) == ["age"]
    assert [subject.site for subject in found.subjects] == ["north", "south", "north", ""]
    for i, subject in enumerate(found.subjects):
        sample = load_subject(subject, found.tasks)
        np.testing.assert_array_equal(sample["image"], np.stack([VALUES + i, VALUES + 500 + i]))
        assert [tags["echo_time_ms"] for tags in sample["acquisition"]] == [30, 30]


def test_a_subject_without_the_series_is_skipped_with_the_reason(hospital, tmp_path):
    manifest = write_shards(find_dataset(hospital, series=SERIES | {"FLAIR": "*flair*"}), tmp_path / "out", num_folds=2)
    (line,) = manifest.skipped
    assert line.startswith("b: its file: no series *flair*. Fix: choose from 2 (")
    assert manifest.channels == ["T1w", "FLAIR"] and read_manifest(tmp_path / "out") == manifest


def test_the_description_may_name_them_and_the_command_line_wins(hospital):
    (hospital / "dataset.yaml").write_text('tasks: {age: {kind: regression}}\nseries: {FLAIR: "*flair*|*tirm*", T1w: "*post*"}\n')
    found = find_dataset(hospital)
    assert found.channels == ["FLAIR", "T1w"] and found.subjects[0].series == ("*flair*|*tirm*", "*post*")
    assert find_dataset(hospital, series={"T1w": "4"}).channels == ["T1w"]
    (hospital / "dataset.yaml").write_text('channels: [T1w, FLAIR]\nseries: {FLAIR: 7, T1w: "*post*"}\n')
    assert find_dataset(hospital).subjects[0].series == ("*post*", "7"), "in the order of the channels"
    for text in ("series: [T1w]", "series: {T1w: }", "series: {T1w: [a]}", "series: {T1w: ''}"):
        (hospital / "dataset.yaml").write_text(text)
        with pytest.raises(InputError, match="names no patterns"):
            find_dataset(hospital)


def test_time_points_of_one_series_are_channels_with_names(tmp_path):
    images = tmp_path / "images"
    for subject in "ab":
        build.save(
            described("rest", build.voxels((12, 10, 5, 3)), number=3) + described("T1", VALUES, number=4), images / subject
        )
    (tmp_path / "participants.tsv").write_text("participant_id\tage\na\t1\nb\t2\n")
    (tmp_path / "dataset.yaml").write_text("channels: [t0, t1, t2]\nseries: {bold: rest}\n")
    found = find_dataset(tmp_path)
    assert found.channels == ["t0", "t1", "t2"]
    np.testing.assert_array_equal(load_subject(found.subjects[0], {})["image"], np.moveaxis(build.voxels((12, 10, 5, 3)), 3, 0))
    (tmp_path / "dataset.yaml").unlink()
    found = find_dataset(tmp_path, series={"bold": "rest"})
    result = encode_subject(found.subjects[0], found.tasks, len(found.channels))
    assert isinstance(result, InputError) and "3 image channels (time points count), the dataset has 1" in str(result)


def test_series_that_are_not_on_one_grid_are_skipped(tmp_path):
    moved = described("FLAIR", VALUES, number=8, origin=(-20, -30, 11))
    build.save(described("T1", VALUES, number=3) + moved, tmp_path / "images" / "a")
    (tmp_path / "participants.tsv").write_text("participant_id\tage\na\t1\n")
    found = find_dataset(tmp_path, series={"T1w": "T1", "FLAIR": "FLAIR"})
    result = encode_subject(found.subjects[0], found.tasks, 2)
    assert isinstance(result, InputError) and "corners of series 8 and 3 lie up to 1 mm apart" in str(result)


def test_a_table_of_studies(hospital):
    """Numbers differ from study to study: a column says them."""
    table = hospital / "subjects.csv"
    rows = ["a,images/a,4,*flair*,50", "b,images/b,5,9,60", "c,images/c,6,*FLAIR,70", "d,images/d.zip,7,13,80"]
    table.write_text("\n".join(["subject,image,series:T1w,series:FLAIR,age", *rows]) + "\n")
    found = find_dataset(table)
    assert found.channels == ["T1w", "FLAIR"] and found.problems == [] and list(found.tasks) == ["age"]
    for i, subject in enumerate(found.subjects):
        np.testing.assert_array_equal(load_subject(subject, {})["image"], np.stack([VALUES + i, VALUES + 500 + i]))
    with pytest.raises(InputError, match="names the series of each subject in columns"):
        find_dataset(table, series=SERIES)
    table.write_text("subject,image,series:T1w,age\na,images/a,n/a,50\n")
    with pytest.raises(InputError, match=r"a series is not named.*mri-ds series images/a"):
        find_dataset(table)
    table.write_text("subject,image:T1w,series:T1w,age\na,images/a,4,50\n")
    with pytest.raises(InputError, match="has image:CHANNEL and series:CHANNEL columns"):
        find_dataset(table)
    table.write_text("subject,image,age\na,images/a,50\n")
    assert find_dataset(table, series=SERIES).subjects[0].series == tuple(SERIES.values())


class Brighter(torch.nn.Module):
    """Says where the second channel is brighter than its mean."""

    def forward(self, image, spacing_mm):
        return {"bright": torch.stack([-image[:, 1], image[:, 1]], dim=1)}


def test_a_study_is_predicted_by_its_series(hospital, tmp_path):
    """The label map lies on the scanner's grid, voxel by voxel where that series is bright."""
    task = TaskConfig(kind="segmentation", classes=["dark", "bright"])
    data = DataConfig(spacing_mm=(1.25, 1.5, 3.0), patch=(16, 16, 8))
    run = Run(Brighter(), RunConfig(data=data, tasks={"bright": task}), ["T1w", "FLAIR"], torch.device("cpu"))
    wanted = series_of_channels({"FLAIR": "*flair*", "T1w": "*t1*"}, run.channels)
    assert wanted == ["*t1*", "*flair*"]
    found = predict_file(run, hospital / "images" / "a", tmp_path / "out", keep_small_parts=True, series=wanted)
    label = nib.load(found["files"]["bright"])
    flair = VALUES + 500.0
    agree = (np.asarray(label.dataobj) == (flair > flair.mean())).mean()
    assert label.shape == VALUES.shape and agree > 0.99
    np.testing.assert_allclose(label.affine, build.expected_affine(), atol=1e-5)
    with pytest.raises(InputError, match="--series names the channels T1w, and the network has T1w, FLAIR"):
        series_of_channels({"T1w": "4"}, run.channels)
    with pytest.raises(InputError, match="holds 2 series"):
        predict_file(run, hospital / "images" / "a", tmp_path / "out")


def test_a_study_is_no_dataset(study, hospital):
    for path in (study, hospital / "images" / "d.zip", next(study.iterdir())):
        with pytest.raises(InputError, match=r"is DICOM, and no dataset.*images/<subject>.*`mri-ds series`"):
            find_dataset(path)


def test_series_of_no_study(subjects_folder, tmp_path):
    with pytest.raises(InputError, match="series are of DICOM studies"):
        anat = tmp_path / "sub-1" / "anat"
        anat.mkdir(parents=True)
        shutil.copy(subjects_folder / "images" / "sub-00.nii.gz", anat / "sub-1_T1w.nii.gz")
        (tmp_path / "dataset.yaml").write_text("series: {T1w: 4}\n")
        find_dataset(tmp_path)
    for option in ("T1w", "=4", "T1w=", " = "):
        with pytest.raises(InputError, match="names no channel and series"):
            parse_series([option])
    with pytest.raises(InputError, match="names channel 'a' twice"):
        parse_series(["a=1", "a=2"])
    assert parse_series(["T1w = *t1=2*", "F=4"]) == {"T1w": "*t1=2*", "F": "4"}
