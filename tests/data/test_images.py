"""An image is an image: DICOM loads wherever a NIfTI does, into the same sample."""

import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")

import dicom_builder as build  # noqa: E402

from mri_ds.config import TaskConfig  # noqa: E402
from mri_ds.data.images import image_name, is_dicom, read_image, source_bytes, source_sha256  # noqa: E402
from mri_ds.data.layouts import SubjectFiles, find_dataset, load_subject  # noqa: E402
from mri_ds.data.nifti import write_image, write_label  # noqa: E402
from mri_ds.data.shards import encode_subject  # noqa: E402
from mri_ds.errors import InputError  # noqa: E402
from mri_ds.inference.predict import find_channels  # noqa: E402

VALUES = build.voxels()
AFFINE = build.expected_affine()
TISSUE = TaskConfig(kind="segmentation", classes=["background", "tissue"])


def packed(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
    return path


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("sub-01_T1w.nii.gz", "sub-01_T1w"), ("sub-01.NII", "sub-01"), ("sub-01_T1w.dcm", "sub-01_T1w"), ("a.b.zip", "a.b"),
        ("x.IMA", "x"), ("notes.txt", None), (".hidden.zip", None), ("._a.nii", None),
    ],
)  # fmt: skip
def test_names(tmp_path, name, wanted):
    (tmp_path / name).touch()
    assert image_name(tmp_path / name) == wanted


def test_a_folder_is_an_image_by_its_name(tmp_path):
    (tmp_path / "sub-01_T1.w").mkdir()
    assert image_name(tmp_path / "sub-01_T1.w") == "sub-01_T1.w" and is_dicom(tmp_path / "sub-01_T1.w")
    (tmp_path / ".git").mkdir()
    assert image_name(tmp_path / ".git") is None


def test_nifti_stays_nifti(tmp_path):
    write_image(tmp_path / "a.nii.gz", VALUES, AFFINE)
    volume, tags = read_image(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(volume.voxels[0], VALUES)
    assert tags == [{}]
    (tmp_path / "folder.nii.gz").mkdir()
    with pytest.raises(InputError, match="is not a NIfTI file"):
        read_image(tmp_path / "folder.nii.gz")
    with pytest.raises(InputError, match="no such file"):
        read_image(tmp_path / "absent")


def test_a_file_of_no_known_name_that_is_dicom(tmp_path):
    folder = build.save([build.enhanced(VALUES)], tmp_path / "in")
    file = next(folder.iterdir()).rename(tmp_path / "IM0001")
    np.testing.assert_array_equal(read_image(file)[0].voxels[0], VALUES * 2.0 - 8)


def test_dicom_channels_with_a_nifti_label(tmp_path):
    """A folder and a zip as channels, and a label drawn on what a converter made of them: rows flipped."""
    first = build.save(build.series(VALUES), tmp_path / "s_T1w")
    second = packed(build.save(build.series(VALUES + 5), tmp_path / "other"), tmp_path / "s_T2w.zip")
    sample = load_subject(SubjectFiles("s", [first, second], {}, {}), {})
    np.testing.assert_array_equal(sample["image"], np.stack([VALUES, VALUES + 5]))
    np.testing.assert_allclose(sample["affine"], AFFINE, atol=1e-6)
    assert [tags["field_strength_t"] for tags in sample["acquisition"]] == [3, 3]
    write_label(tmp_path / "s_tissue.nii.gz", VALUES > 500, AFFINE)
    labelled = load_subject(SubjectFiles("s", [first], {"tissue": tmp_path / "s_tissue.nii.gz"}, {}), {"tissue": TISSUE})
    np.testing.assert_array_equal(labelled["targets"]["tissue"], VALUES > 500)


def test_nifti_and_dicom_on_one_grid(tmp_path):
    folder = build.save(build.series(VALUES), tmp_path / "s_T1w")
    write_image(tmp_path / "s_T2w.nii.gz", VALUES + 1, AFFINE)
    sample = load_subject(SubjectFiles("s", [folder, tmp_path / "s_T2w.nii.gz"], {}, {}), {})
    assert sample["image"].shape == (2, 12, 10, 5) and sample["acquisition"][1] == {}
    write_image(tmp_path / "s_T2w.nii.gz", VALUES + 1, AFFINE + np.eye(4, k=3))
    with pytest.raises(InputError, match="affine places its corners up to 1 mm from those of s_T1w"):
        load_subject(SubjectFiles("s", [folder, tmp_path / "s_T2w.nii.gz"], {}, {}), {})


@pytest.fixture
def dataset(tmp_path) -> Path:
    """Three subjects of two channels each: as folders, as zips, and as an enhanced file beside a NIfTI."""
    images = tmp_path / "study" / "images"
    images.mkdir(parents=True)
    for channel in ("T1w", "T2w"):
        made = build.series(VALUES)
        for ds in made:
            ds.PatientName, ds.PatientID = "Zyxwarth^Quillon", "PID7741"
        build.save(made, images / f"a_{channel}")
        packed(images / f"a_{channel}", images / f"b_{channel}.zip")
    enhanced = build.save([build.enhanced(VALUES)], tmp_path / "c")
    next(enhanced.iterdir()).rename(images / "c_T1w.dcm")
    write_image(images / "c_T2w.nii.gz", VALUES, AFFINE)
    (tmp_path / "study" / "participants.tsv").write_text("participant_id\tage\na\t50\nb\t60\nc\t70\n")
    return tmp_path / "study"


def test_the_folder_layout_with_dicom(dataset):
    found = find_dataset(dataset)
    assert found.channels == ["T1w", "T2w"] and found.problems == []
    assert [[path.name for path in subject.images] for subject in found.subjects] == [
        ["a_T1w", "a_T2w"], ["b_T1w.zip", "b_T2w.zip"], ["c_T1w.dcm", "c_T2w.nii.gz"],
    ]  # fmt: skip
    samples = [load_subject(subject, found.tasks) for subject in found.subjects]
    np.testing.assert_array_equal(samples[0]["image"], samples[1]["image"])
    assert all(sample["image"].shape == (2, 12, 10, 5) for sample in samples)
    (dataset / "images" / "nobody_T1w").mkdir()
    assert find_dataset(dataset).problems == ["images/nobody_T1w belongs to no subject or task"]


def test_shards_of_dicom_name_nobody(dataset):
    found = find_dataset(dataset)
    for subject in found.subjects:
        encoded = encode_subject(subject, found.tasks, 2)
        assert not isinstance(encoded, InputError), encoded
        content = b"".join(encoded.members.values()).lower()
        assert b"zyxwarth" not in content and b"pid7741" not in content and str(dataset).encode() not in content


def test_digest_and_size_of_a_folder(tmp_path):
    """By content, whatever the names: two exports of one series are one source."""
    folder = build.save(build.series(VALUES), tmp_path / "a")
    digest = source_sha256(folder)
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(folder / f"{9 - number}.dcm")
    assert source_sha256(folder) == digest and len(digest) == 64
    assert source_bytes(folder) == sum(file.stat().st_size for file in folder.iterdir()) and source_bytes(tmp_path / "no") == 0
    with next(folder.iterdir()).open("ab") as file:
        file.write(b"x")
    assert source_sha256(folder) != digest


def test_channels_to_predict_from(dataset):
    images = dataset / "images"
    assert find_channels(images / "a_T1w", ["T1w", "T2w"]) == ("a", [images / "a_T1w", images / "a_T2w"])
    assert find_channels(images / "b_T2w.zip", ["T1w", "T2w"]) == ("b", [images / "b_T1w.zip", images / "b_T2w.zip"])
    assert find_channels(images / "a_T1w", ["T1w"]) == ("a", [images / "a_T1w"])


def test_orientation_survives(tmp_path):
    """A sagittal series: array axis 0 runs to the back, 1 down, 2 to the right."""
    folder = build.save(build.series(VALUES, orientation=(0, 1, 0, 0, 0, -1)), tmp_path / "in")
    assert "".join(nib.aff2axcodes(read_image(folder)[0].affine)) == "PIR"
