"""Nothing that identifies a patient passes: not in volumes, tags, shards, errors, warnings or log lines."""

import contextlib
import json
import logging
import warnings
from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")

import dicom_builder as build  # noqa: E402
from pydicom.dataset import Dataset, FileDataset  # noqa: E402

from mri_ds.data.dicom import list_series, read_dicom  # noqa: E402
from mri_ds.data.dicom.tags import CODES, NUMBERS, TEXTS  # noqa: E402
from mri_ds.errors import InputError  # noqa: E402

PLANTED = {
    "PatientName": "Zyxwarth^Quillon", "PatientID": "PID-7741-93", "PatientBirthDate": "19470311", "OtherPatientIDs": "ALT88231",
    "PatientAddress": "9 Thornapple Lane", "PatientComments": "sister of Gwendolyx", "AccessionNumber": "ACC559102",
    "StudyDate": "20190827", "SeriesDate": "20190828", "AcquisitionDate": "20190829", "ContentDate": "20190830",
    "AcquisitionTime": "114433.221100", "StudyTime": "114434", "StudyDescription": "Brain of Zyxwarth", "StudyID": "STU4471",
    "SeriesDescription": "T1 Quillon axial", "ProtocolName": "Head_Zyxwarth", "InstitutionName": "St Vorpal Clinic",
    "InstitutionAddress": "Vorpal Road 5", "ReferringPhysicianName": "Mandrake^Orly", "OperatorsName": "Operetta^Ina",
    "PerformingPhysicianName": "Perform^Dora", "StationName": "MRVORPAL01", "DeviceSerialNumber": "SN4477123",
    "ImageComments": "Zyxwarth moved", "RequestedProcedureDescription": "MRI for Quillon", "PatientAge": "072Y",
    "PatientSex": "F", "PatientWeight": "61.25", "AdditionalPatientHistory": "fell in Thornapple Lane",
    "SoftwareVersions": "syngo Vorpal",
    "DerivationDescription": "by Operetta", "RescaleType": "VORPAL", "AcquisitionComments": "Gwendolyx waits outside",
}  # fmt: skip
UIDS = {"StudyInstanceUID": "1.2.34567.111", "SeriesInstanceUID": "1.2.34567.222", "FrameOfReferenceUID": "1.2.34567.333"}
WORDS = ["zyxwarth", "quillon", "7741", "19470311", "1947", "alt88231", "thornapple", "gwendolyx", "acc559102", "2019082",
         "2019083", "114433", "114434", "stu4471", "vorpal", "mandrake", "orly", "operetta", "perform", "sn4477123", "072y",
         "61.25", "34567", "private note", "doe_"]  # fmt: skip


def planted(values: np.ndarray, **changes: object) -> list[FileDataset]:
    made = build.series(values)
    for ds in made:
        for keyword, value in (PLANTED | UIDS | changes).items():
            setattr(ds, keyword, value)
        block = ds.private_block(0x0011, "VORPAL PRIVATE", create=True)
        block.add_new(0x01, "LT", "private note on Zyxwarth")
        nested = Dataset()
        nested.PatientName = "Zyxwarth^Quillon"
        ds.ReferencedStudySequence = pydicom.sequence.Sequence([nested])
    return made


def assert_clean(text: str) -> None:
    found = [word for word in WORDS if word in text.lower()]
    assert not found, f"{found} in {text}"


@pytest.fixture
def watched(caplog):
    """Collects warnings and log lines of the test, which must be clean too."""
    caplog.set_level(logging.DEBUG)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    assert_clean(caplog.text + " ".join(str(warning.message) for warning in caught))


def test_nothing_planted_comes_out(tmp_path, watched, capfd):
    folder = build.save(planted(build.voxels()), tmp_path / "in")
    volume, tags = read_dicom(folder)
    assert_clean(json.dumps(tags) + repr(volume.affine) + json.dumps(list_series(folder)))
    assert_clean("".join(capfd.readouterr()))
    assert tags[0] == {
        "echo_time_ms": 30, "field_strength_t": 3, "flip_angle_deg": 90, "manufacturer": "Siemens", "modality": "MR",
        "model": "SKYRA", "patient_position": "HFS", "repetition_time_ms": 2000, "slice_thickness_mm": 3,
    }  # fmt: skip


def test_only_listed_tags_have_a_name():
    assert not set(NUMBERS) & set(CODES) and set(TEXTS) == {"model", "sequence_name"}
    assert not [name for name in [*NUMBERS, *CODES, *TEXTS] if any(word in name for word in ("date", "uid", "birth", "age_"))]


@pytest.mark.parametrize(
    ("keyword", "value", "tag"),
    [
        ("ManufacturerModelName", "Skyra Zyxwarth", "model"),  # a text that repeats the patient's name
        ("ManufacturerModelName", "unit of 20190827", "model"),  # a date
        ("ManufacturerModelName", "Skyra, room of Dr. Orly; (second floor)", "model"),  # prose
        ("SequenceName", "t1_quillon", "sequence_name"),
        ("SequenceName", "ACC559102", "sequence_name"),
        ("ScanningSequence", "ZYXWARTH", "scanning_sequence"),  # not a code of the standard
        ("ImagedNucleus", "QUILLON", "nucleus"),
        ("MRAcquisitionType", "GWENDOLYX", "acquisition_type"),
        ("EchoTime", "20190827", "echo_time_ms"),  # no echo is that late
        ("MagneticFieldStrength", "-3", "field_strength_t"),
    ],
)
def test_listed_tags_that_say_what_they_should_not(tmp_path, watched, keyword, value, tag):
    folder = build.save(planted(build.voxels(), **{keyword: value}), tmp_path / "in")
    _, tags = read_dicom(folder)
    assert tag not in tags[0]
    assert_clean(json.dumps(tags))


def test_an_unknown_manufacturer_is_other(tmp_path):
    folder = build.save(planted(build.voxels(), Manufacturer="Vorpal Scanners of Orly"), tmp_path / "in")
    assert read_dicom(folder)[1][0]["manufacturer"] == "other"


@pytest.mark.parametrize(
    ("keyword", "tag"),
    [("Rows", 0x00280010), ("PixelSpacing", 0x00280030), ("ImagePositionPatient", 0x00200032), ("InstanceNumber", 0x00200013)],
)
def test_a_damaged_value_is_named_not_quoted(tmp_path, watched, keyword, tag):
    """pydicom's own messages and warnings quote what they read."""
    made = planted(build.voxels())
    for ds in made:
        ds[tag] = pydicom.dataelem.RawDataElement(pydicom.tag.Tag(tag), "LO", 14, b"Zyxwarth^Quill", 0, False, True)
    folder = build.save(made, tmp_path / "in")
    with pytest.raises(InputError) as caught:
        read_dicom(folder)
    assert_clean(str(caught.value).removeprefix(str(folder)))
    assert keyword in str(caught.value)


def test_errors_and_logs_of_damaged_files_are_clean(tmp_path, watched, capfd):
    """Bytes of the header overwritten at random: whatever is refused, no word of it is told."""
    folder = build.save(planted(build.voxels((6, 5, 3))), tmp_path / "in")
    file, rng, refused = sorted(folder.iterdir())[0], np.random.default_rng(0), 0
    good = file.read_bytes()
    for _ in range(150):
        content = bytearray(good)
        for at in rng.integers(132, len(content) - 70, size=4):
            content[at] = rng.integers(256)
        file.write_bytes(content)
        with contextlib.suppress(FileNotFoundError):
            try:
                _, tags = read_dicom(folder)
                assert_clean(json.dumps(tags))
            except InputError as err:
                refused += 1
                assert_clean(str(err).removeprefix(str(folder)))
                assert "\n" not in str(err)
    assert refused > 20
    assert_clean("".join(capfd.readouterr()))


def test_file_names_are_not_told(tmp_path):
    folder = build.save(planted(build.voxels()), tmp_path / "in")
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(folder / f"DOE_{number}.dcm")
    (folder / "DOE_2.dcm").write_bytes(b"\0" * 600)
    with pytest.raises(InputError) as caught:
        read_dicom(folder)
    assert_clean(str(caught.value).removeprefix(str(folder)))
    assert "file 3 of 5 is not DICOM" in str(caught.value)


def test_what_dcm2niix_reads_is_clean_too(tmp_path, monkeypatch, watched, capfd):
    pytest.importorskip("dcm2niix")
    folder = build.save(planted(build.voxels()), tmp_path / "in")
    monkeypatch.setattr("mri_ds.data.dicom.pixels.can_decode", lambda syntax: False)
    before = set(Path(tmp_path).rglob("*"))
    _, tags = read_dicom(folder)
    assert_clean(json.dumps(tags) + "".join(capfd.readouterr()))
    assert set(Path(tmp_path).rglob("*")) == before
