"""`mri-ds series` and `mri-ds shard --series`: from DICOM studies to shards, against dcm2niix on a real study."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from commands import call, refusal

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
dcm2niix = pytest.importorskip("dcm2niix", reason="needs the extra dicom")

from mri_ds.data.index import ShardDataset  # noqa: E402

REAL = Path(os.environ.get("MRI_DS_REAL_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")) / "dicom_study"
pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason=f"no real DICOM in {REAL}: set MRI_DS_REAL_DATA")
CHANNELS = {"T1w": "11-T1post-18670", "FLAIR": "36468-FLAIRreg-58706"}


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real study twice: as it is, zipped, and as a folder with its voxels shifted by seven."""
    src = tmp_path_factory.mktemp("hospital")
    for name in CHANNELS.values():
        shutil.copytree(REAL / name, src / "images" / "p1" / name)
    shutil.copytree(src / "images" / "p1", src / "images" / "p2")
    for file in (src / "images" / "p2").rglob("*.dcm"):
        ds = pydicom.dcmread(file)
        ds.PixelData = (np.frombuffer(ds.PixelData, "<u2") + 7).astype("<u2").tobytes()
        ds.save_as(file)
    shutil.make_archive(str(src / "images" / "p1"), "zip", src / "images" / "p1")
    shutil.rmtree(src / "images" / "p1")
    (src / "participants.tsv").write_text("participant_id\tage\np1\t50\np2\t60\n")
    return src


def test_the_series_of_a_study_are_listed() -> None:
    result = call("series", REAL)
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines()[1:]]
    assert [row[0] for row in rows] == ["#1", "11", "26401", "36468", "37870"]
    assert rows[3][1:] == ["FLAIR_REG", "22", "280", "x", "320", "10000", "90", "2600"]
    found = json.loads(call("series", REAL, "--json").stdout)["series"]
    assert [one["key"] for one in found] == [row[0] for row in rows] and found[1]["acquisition"]["field_strength_t"] == 1.5
    assert "holds no DICOM image" in refusal("series", Path(__file__))


def test_series_become_channels_voxel_by_voxel_as_dcm2niix_has_them(hospital: Path, tmp_path: Path) -> None:
    options = ["--series", "T1w=*t1*", "--series", "FLAIR=*flair*"]
    result = call("shard", hospital, "--out", tmp_path / "shards", "--folds", "2", *options)
    assert result.exit_code == 0 and "channels T1w, FLAIR" in result.stderr, result.output
    samples = {s["subject_id"]: s for split in ("train", "test") for s in ShardDataset(tmp_path / "shards", split).samples()}
    assert set(samples) == {"p1", "p2"}
    for channel, (name, folder) in enumerate(CHANNELS.items()):
        out = tmp_path / name
        out.mkdir()
        command = [dcm2niix.bin, "-b", "n", "-z", "n", "-f", "v", "-o", str(out), str(REAL / folder)]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True, timeout=60)
        theirs = nib.as_closest_canonical(nib.load(next(out.glob("*.nii"))))
        np.testing.assert_array_equal(samples["p1"]["image"][channel], np.asarray(theirs.dataobj))
        np.testing.assert_array_equal(samples["p2"]["image"][channel], np.asarray(theirs.dataobj) + 7.0)
        np.testing.assert_allclose(samples["p1"]["affine"], theirs.affine, atol=1e-4)
    assert [tags["echo_time_ms"] for tags in samples["p1"]["acquisition"]] == [9.5, 90]


def test_what_cannot_be_chosen_is_one_line(hospital: Path, tmp_path: Path) -> None:
    line = refusal("shard", hospital, "--out", tmp_path / "out", "--folds", "2", "--series", "T1w=*t2*", "--strict")
    assert "no series *t2*. Fix: choose from 11 (22 of 280 x 320, TR 500, TE 9.5), 36468 (" in line
    line = refusal("shard", hospital, "--out", tmp_path / "out", "--folds", "2", "--strict")
    assert "holds 2 series: 11 (" in line and "--series NAME=PATTERN" in line
    assert "names no channel and series" in refusal("shard", hospital, "--out", tmp_path / "out", "--series", "T1w")
    assert "is DICOM, and no dataset" in refusal("shard", REAL, "--out", tmp_path / "out", "--series", "T1w=*t1*")
