"""`mri-ds predict` over every kind of input, twice; what fails beside what does not; and without DeepSpeed in the environment."""

import csv
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import highdicom
import nibabel as nib
import numpy as np
import pytest
from networks import SPACING, write_image, write_run
from scipy import stats
from typer.testing import CliRunner, Result

from mri_ds.cli.main import app
from mri_ds.data.images import read_image
from mri_ds.inference.run import load_run

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from dicom_builder import save, series, voxels


def call(*args: str | Path) -> Result:
    return CliRunner().invoke(app, ["predict", *map(str, args)])


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """{what to give: where its images are}; none has a label."""
    folder = tmp_path_factory.mktemp("inputs")
    bids = write_image(folder / "bids/sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz", seed=1)
    msd = [
        write_image(folder / "msd" / name, seed=2 + i)
        for i, name in enumerate(("imagesTr/brain_1.nii.gz", "imagesTs/brain_2.nii.gz"))
    ]
    told = {"labels": {"0": "background", "1": "a"}, "modality": {"0": "MRI"}, "test": ["imagesTs/brain_2.nii.gz"]}
    told |= {"training": [{"image": "imagesTr/brain_1.nii.gz", "label": "labelsTr/brain_1.nii.gz"}]}
    (folder / "msd/dataset.json").write_text(json.dumps(told))
    table = write_image(folder / "csv/deep/scan.nii", seed=4)
    (folder / "csv/t.csv").write_text("subject,image:T1w\np7,deep/scan.nii\np8,n/a\n")
    plain = [write_image(folder / f"plain/{name}_T1w.nii.gz", seed=5 + i) for i, name in enumerate("ab")]
    save(series(voxels((20, 18, 7))), folder / "study")
    save(series(voxels((20, 18, 7), seed=1)), folder / "zipped")
    with zipfile.ZipFile(folder / "packed.zip", "w") as archive:
        for file in sorted((folder / "zipped").iterdir()):
            archive.write(file, file.name)
    single = write_image(folder / "one.nii.gz", seed=8)
    return {
        "bids": [bids], "msd": msd, "csv/t.csv": [table], "plain": plain, "study": [folder / "study"],
        "packed.zip": [folder / "packed.zip"], "one.nii.gz": [single], "": [folder],
    }  # fmt: skip


SUBJECTS = ["sub-01_ses-a", "brain_1", "brain_2", "p7", "a", "b", "study", "packed", "one"]


def test_every_kind_of_input_comes_back_on_its_own_grid_and_once(run_dir, inputs, tmp_path):
    given = [inputs[""][0] / name for name in inputs if name]
    images = dict(zip(SUBJECTS, [path for name, paths in inputs.items() if name for path in paths], strict=True))
    out = tmp_path / "out"
    done = call("--checkpoint", run_dir, "--output", out, "--probabilities", "--json", "--input", *given)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert [one["subject_id"] for one in told["subjects"]] == SUBJECTS and not told["failed"] and not told["skipped"]
    assert "note: p8 has an empty cell: left out" in done.stderr and "predict: 9/9" in done.stderr
    for one in told["subjects"]:
        image, _ = read_image(images[one["subject_id"]])
        written = nib.load(one["files"]["tissue"])
        labels = np.asarray(written.dataobj)
        assert labels.shape == image.voxels.shape[1:] and np.allclose(written.affine, image.affine, atol=1e-4)
        chances = nib.load(one["files"]["tissue_probabilities"])
        assert chances.shape == (*labels.shape, 3) and np.array_equal(chances.affine, written.affine)
        assert np.array_equal(chances.get_fdata().argmax(axis=3), labels) and np.allclose(chances.get_fdata().sum(axis=3), 1)
        assert set(np.unique(labels)) > {1}, "an untrained network, but no constant one"
        assert json.loads(Path(one["files"]["json"]).read_text())["tasks"] == one["tasks"]
        assert Path(one["files"]["picture"]).read_bytes().startswith(b"\x89PNG")
        ml = abs(np.linalg.det(image.affine[:3, :3])) / 1000
        assert one["tasks"]["tissue"]["volume_ml"]["white"] == pytest.approx((labels == 2).sum() * ml, abs=1e-3)
        assert ("tissue_seg" in one["files"]) == (one["subject_id"] in ("study", "packed"))
    with Path(told["volumes"]).open() as file:
        rows = list(csv.DictReader(file))
    assert [row["subject_id"] for row in rows] == SUBJECTS and list(rows[0]) == [
        "subject_id",
        "tissue/grey_ml",
        "tissue/white_ml",
    ]
    assert float(rows[3]["tissue/white_ml"]) == told["subjects"][3]["tasks"]["tissue"]["volume_ml"]["white"]
    _check_seg(Path(told["subjects"][6]["files"]["tissue_seg"]), Path(told["subjects"][6]["files"]["tissue"]))

    before = {path: path.stat().st_mtime_ns for path in out.iterdir() if path.name != "volumes.csv"}
    os.utime(images["one"])  # new bytes, as far as anyone can tell without reading them
    again = call("--checkpoint", run_dir, "--output", out, "--probabilities", "--json", "--input", *given)
    assert json.loads(again.stdout)["skipped"] == SUBJECTS[:-1], again.output
    assert json.loads(again.stdout)["subjects"] == told["subjects"]
    changed = {path.name.partition(".")[0].partition("_")[0] for path, at in before.items() if path.stat().st_mtime_ns != at}
    assert changed == {"one"} and not [path for path in out.iterdir() if path.name.startswith(".") or path.is_dir()]


def _check_seg(seg: Path, nifti: Path) -> None:
    """highdicom's own reader puts each voxel of the SEG where nibabel puts it of the label map."""
    volume = highdicom.seg.segread(seg).get_volume(combine_segments=True)
    places = np.argwhere(np.ones(volume.array.shape[:3]))
    labels = nib.load(nifti)
    to_voxels = np.linalg.inv(labels.affine) @ np.diag([-1, -1, 1, 1]) @ volume.affine
    at = (to_voxels @ np.c_[places, np.ones(len(places))].T)[:3]
    assert np.abs(at - np.rint(at)).max() < 1e-3
    assert np.array_equal(volume.array[tuple(places.T)], np.asarray(labels.dataobj)[tuple(np.rint(at).astype(int))])


def test_what_fails_does_not_stop_the_rest_and_is_named(run_dir, inputs, tmp_path):
    good = inputs["one.nii.gz"][0]
    nib.save(nib.Nifti1Image(np.ones((8, 8, 8), dtype=np.float32), np.eye(4)), tmp_path / "flat.nii.gz")
    paths = [tmp_path / "flat.nii.gz", tmp_path / "absent.nii.gz", good]
    done = call("--checkpoint", run_dir, "--output", tmp_path / "out", "--json", "--input", *paths)
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert [one["subject_id"] for one in told["subjects"]] == ["one"] and list(told["failed"]) == ["flat", "absent"]
    assert "error: 2 of 3 subjects failed" in done.stderr and "constant" in told["failed"]["flat"]
    assert f"  absent: {tmp_path / 'absent.nii.gz'}: no such file" in done.stderr
    none = call("--checkpoint", run_dir, "--output", tmp_path / "none", "--json", "--input", *paths[:2])
    assert none.exit_code == 2 and none.stdout == ""


def test_other_weights_and_settings_are_predicted_again(run_dir, inputs, tmp_path):
    image, copy = inputs["one.nii.gz"][0], shutil.copytree(run_dir, tmp_path / "run")
    given = ["--output", tmp_path / "out", "--json", "--input", image]

    def skips(*options: str | Path) -> int:
        done = call("--checkpoint", copy, *given, *options)
        assert done.exit_code == 0, done.output
        return len(json.loads(done.stdout)["skipped"])

    told = [
        skips(*options) for options in ([], [], ["--overlap", "0.25"], ["--overlap", "0.25"], ["--tta", "1,2"], ["--tta", "1,2"])
    ]
    assert told == [0, 1, 0, 1, 0, 1]
    calibration = {
        "coverage": 0.8,
        "tasks": {"age": {"half_width": 4.0, "more": 1}, "grade": {"temperature": 2.0, "threshold": 0.0}},
    }
    plain = json.loads((tmp_path / "out/one.json").read_text())["tasks"]
    (copy / "calibration.json").write_text(json.dumps(calibration))
    assert skips("--tta", "1,2") == 0
    tasks = json.loads((tmp_path / "out/one.json").read_text())["tasks"]
    value = tasks["age"]["value"]
    assert (
        value == plain["age"]["value"] and tasks["age"]["interval"] == [value - 4, value + 4] and tasks["age"]["coverage"] == 0.8
    )
    assert tasks["grade"]["likely"] == ["none", "few", "many"]
    flatter, sharper = (np.log(list(told["grade"]["probabilities"].values())) for told in (tasks, plain))
    assert np.allclose(2 * (flatter - flatter[0]), sharper - sharper[0], atol=1e-5), "logits are halved"
    write_run(copy, seed=3)
    assert skips("--tta", "1,2") == 0
    assert call("--checkpoint", copy, *given, "--tta", "left").exit_code == 2


def test_a_calibrated_run_says_how_far_to_trust_each_prediction(run_dir, inputs, tmp_path):
    """By hand from the JSON of calibration; and the label map and what else was there keep every byte."""
    copy = shutil.copytree(run_dir, tmp_path / "run")
    given = ["--checkpoint", copy, "--json", "--input", inputs["bids"][0], inputs["one.nii.gz"][0]]
    plain = call(*given, "--output", tmp_path / "plain")
    assert plain.exit_code == 0 and "look at these" not in plain.stderr and json.loads(plain.stdout)["look_first"] == []
    assert call(*given, "--output", tmp_path / "none", "--coverage", "0.9").exit_code == 2  # nothing to promise from
    scores = {"volume_ml": {"grey": [0.1, 0.2, 0.3, 0.4]}, "quality": {"grey": [0.01, 0.02, 0.03, 0.04]}}
    tissue = {
        "temperature": 2.0,
        "scores": scores,
        "volume_ml": {"grey": {"relative": 0.4, "offset_ml": 2.0}, "white": {"relative": None, "offset_ml": 1.0}},
        "quality": {"grey": {"intercept": 0.1, "slope": 0.5}, "white": {"intercept": 0.95, "slope": 0.0}},
        "quality_half_width": {"grey": 0.04, "white": None},
    }
    tasks = {"tissue": tissue, "age": {"half_width": 4.0, "scores": [1.0, 2.0, 3.0, 4.0]}, "grade": {"temperature": 1.5}}
    (copy / "calibration.json").write_text(json.dumps({"coverage": 0.8, "tasks": tasks}))
    out = tmp_path / "out"
    done = call(*given, "--output", out, "--entropy", "--probabilities", "--coverage", "0.6", "--look-below", "0.9")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    for one in told["subjects"]:
        files, found = one["files"], one["tasks"]["tissue"]
        for what in ("tissue", "picture"):
            assert Path(files[what]).read_bytes() == (tmp_path / "plain" / Path(files[what]).name).read_bytes(), what
        chances, entropy, labels = (nib.load(files[f"tissue{what}"]) for what in ("_probabilities", "_entropy", ""))
        p, label_of = chances.get_fdata(), np.asarray(labels.dataobj)
        assert entropy.get_data_dtype() == np.float32 and entropy.shape == label_of.shape
        assert np.array_equal(entropy.affine, labels.affine) and entropy.header["xyzt_units"] == labels.header["xyzt_units"]
        np.testing.assert_allclose(entropy.get_fdata(), stats.entropy(p, axis=3, base=3), atol=1e-5)
        ml = found["volume_ml"]["grey"]
        half = 0.3 * (ml + 2)  # the third of four: ceil(5 x 0.6)
        assert found["volume_interval_ml"] == {"grey": pytest.approx([max(0, ml - half), ml + half], abs=1e-3)}
        soft = 2 * p[..., 1][label_of == 1].sum() / (p[..., 1].sum() + (label_of == 1).sum())
        dice = 0.1 + 0.5 * soft
        assert found["quality"]["grey"]["dice"] == pytest.approx(dice, abs=1e-4) and 0.1 < dice < 0.6
        assert found["quality"]["grey"]["interval"] == pytest.approx([dice - 0.03, dice + 0.03], abs=2e-4)
        assert found["quality"]["white"] == {"dice": 0.95, "interval": None} and found["coverage"] == 0.6
        value = one["tasks"]["age"]["value"]
        assert one["tasks"]["age"]["interval"] == [value - 3, value + 3] and one["tasks"]["age"]["coverage"] == 0.6
    suspects = sorted((one["tasks"]["tissue"]["quality"]["grey"]["dice"], one["subject_id"]) for one in told["subjects"])
    assert [(one["dice"], one["subject_id"]) for one in told["look_first"]] == suspects
    lines = done.stderr.split("expected Dice is below 0.9:\n")[1].splitlines()
    assert lines == [f"  {name}: tissue/grey {dice:.2f}" for dice, name in suspects]
    with Path(told["volumes"]).open() as file:
        rows = list(csv.DictReader(file))
    grey = ["tissue/grey_ml", "tissue/grey_low_ml", "tissue/grey_high_ml", "tissue/grey_dice"]
    assert list(rows[0]) == ["subject_id", *grey, "tissue/white_ml", "tissue/white_dice"]
    first = told["subjects"][0]["tasks"]["tissue"]
    assert [float(rows[0][column]) for column in grey] == [
        first["volume_ml"]["grey"], *first["volume_interval_ml"]["grey"], first["quality"]["grey"]["dice"]
    ]  # fmt: skip
    again = call(*given, "--output", out, "--entropy", "--probabilities", "--coverage", "0.6")
    assert len(json.loads(again.stdout)["skipped"]) == 2 and json.loads(again.stdout)["subjects"] == told["subjects"]


WITHOUT_DEEPSPEED = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "deepspeed":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from mri_ds.cli.main import main
main(sys.argv[1:])
"""


def test_converted_weights_and_folds_need_no_deepspeed(run_dir, inputs, tmp_path):
    """Both in one process that cannot import it: a converted run beside a folder of folds, averaged."""
    converted = write_run(tmp_path / "converted", seed=1, name="model-step000010.safetensors")
    for number in range(2):
        write_run(tmp_path / f"folds/fold_{number}", seed=number)
    command = [
        sys.executable,
        "-c",
        WITHOUT_DEEPSPEED,
        "predict",
        "--json",
        "--output",
        tmp_path / "out",
        "--input",
        inputs["one.nii.gz"][0],
    ]
    done = subprocess.run(
        [*command, "--checkpoint", converted, "--checkpoint", tmp_path / "folds"], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    (one,) = json.loads(done.stdout)["subjects"]
    paths = [converted, *(tmp_path / f"folds/fold_{number}" for number in range(2))]
    expected = tmp_path / "expected"
    here = call(
        "--output", expected, "--input", inputs["one.nii.gz"][0], *(part for path in paths for part in ("--checkpoint", path))
    )
    assert here.exit_code == 0, here.output
    assert (expected / "one_tissue.nii.gz").read_bytes() == Path(one["files"]["tissue"]).read_bytes()
    assert load_run(run_dir, "cpu").num_members == 1 and SPACING
