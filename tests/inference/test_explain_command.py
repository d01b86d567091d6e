"""`mri-ds explain`, as it is typed: files on the input's own grid, an index, what is skipped, what is refused."""

import csv
import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from networks import TASKS, write_run
from safetensors.torch import save_file
from scenes import make_run
from typer.testing import CliRunner, Result

from mri_ds.cli.main import app
from mri_ds.config import dump_config
from mri_ds.data.layouts import SubjectFiles
from mri_ds.data.manifest import Fingerprint, Manifest, write_manifest
from mri_ds.data.preprocess import to_input_grid
from mri_ds.inference.explain import subject_maps
from mri_ds.inference.explain.experts import expert_map
from mri_ds.inference.predict import predict_file
from mri_ds.inference.run import load_run
from mri_ds.inference.subject_files import read_canonical

ALL = {"rollout", "occlusion", "gradients", "experts", "kan", "tasks"}


def call(*args: str | Path) -> Result:
    return CliRunner().invoke(app, ["explain", *map(str, args)])


def save_run(folder: Path, **model) -> Path:
    run = make_run(**{"patch": (8, 8, 8), **model})
    folder.mkdir()
    save_file({key: tensor.contiguous() for key, tensor in run.net.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.yaml").write_text(dump_config(run.config))
    seen = Fingerprint(median_spacing_mm=(1, 1, 1), median_shape=(16, 16, 16))
    manifest = Manifest(
        format_version=1, layout="folder", channels=run.channels, tasks=run.config.tasks, splits={}, fingerprint=seen, skipped=[]
    )
    write_manifest(manifest, folder / "manifest.json")
    return folder


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    return save_run(tmp_path_factory.mktemp("runs") / "run", top_k=2)


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    """Axes in another order, one of them backwards, turned by 20 degrees, voxels of 1.7 x 0.8 x 1.2 mm."""
    path = tmp_path_factory.mktemp("images") / "s1.nii.gz"
    rng = np.random.default_rng(0)
    voxels = np.kron(rng.normal(size=(2, 3, 2)), np.ones((4, 4, 4)))[:6, :12, :6] + 0.1 * rng.normal(size=(6, 12, 6))
    angle = np.radians(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    order = np.array([[0, -1, 0], [0, 0, 1], [1, 0, 0]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ order @ np.diag([1.7, 0.8, 1.2])
    affine[:3, 3] = (5, -20, 31)
    nib.save(nib.Nifti1Image((100 + 20 * voxels).astype(np.float32), affine), path)
    return path


@pytest.fixture(scope="module")
def explained(run_dir, image, tmp_path_factory) -> tuple[dict, Path, str]:
    out = tmp_path_factory.mktemp("out")
    done = call("--checkpoint", run_dir, "--output", out, "--steps", "6", "--occluder", "6mm", "--json", "--input", image)
    assert done.exit_code == 0, done.output
    assert "explain s1 occlusion: " in done.stderr and "Traceback" not in done.stderr
    return json.loads(done.stdout), out, done.stderr


def test_every_map_lies_on_the_inputs_own_grid(explained, image):
    told, out, _ = explained
    (subject,) = told["subjects"]
    assert set(subject["explanations"]) == ALL - {"kan"} and set(told["kan"]) == {"grade", "age"}
    given = nib.load(image)
    maps = sorted(out.glob("*.nii.gz"))
    assert len(maps) == 3 + 3 + 3 + 2  # three targets of three kinds, two choices of one layer
    for path in maps:
        found = nib.load(path)
        assert found.shape == given.shape, path.name
        assert np.array_equal(found.affine, given.affine) and np.array_equal(found.header["pixdim"], given.header["pixdim"])
        assert np.ptp(found.get_fdata()) > 0, path.name
    index = json.loads((out / "explain.json").read_text())
    assert index["subjects"] == told["subjects"] and index["checkpoint"] == subject["made"]["checkpoint"]
    listed = {one["file"] for entry in subject["explanations"].values() for one in entry["maps"]}
    listed |= {name for of_task in told["kan"].values() for name in of_task.values()}
    assert listed | {"explain.json", "s1_explain.json"} == {path.name for path in out.iterdir()}


def test_the_files_numbers_are_those_of_the_predictions(explained, run_dir, image, tmp_path):
    told, out, stderr = explained
    explanations = told["subjects"][0]["explanations"]
    predicted = predict_file(load_run(run_dir), image, tmp_path)["tasks"]
    of_task = {one["task"]: one for one in explanations["gradients"]["maps"]}
    assert of_task["age"]["value"] == pytest.approx(predicted["age"]["value"], rel=1e-5) and of_task["age"]["unit"] == "years"
    grade = of_task["grade"]
    assert grade["class"] == predicted["grade"]["class"]
    assert grade["value"] == pytest.approx(predicted["grade"]["probabilities"][grade["class"]], rel=1e-5)
    assert of_task["tissue"]["class"] is None and of_task["tissue"]["unit"] == "mL"
    for one in of_task.values():  # complete, in the file itself, on another grid than the network's
        total, difference = nib.load(out / one["file"]).get_fdata().sum(), one["value"] - one["baseline_value"]
        assert total == pytest.approx(difference + one["gap"], abs=1e-4 * abs(one["value"]))
        assert sum(one["by_channel"].values()) == pytest.approx(total, abs=1e-3)
        assert (f"gradients of s1 {one['task']}: " in stderr) == (abs(one["gap"]) > 0.05 * abs(difference))
    assert "with 6 steps" in stderr, "few steps leave a gap, and it is told"
    for one in explanations["rollout"]["maps"]:
        assert nib.load(out / one["file"]).get_fdata().mean() == pytest.approx(1, abs=0.1)
    for one in explanations["occlusion"]["maps"]:
        shown = nib.load(out / one["file"]).get_fdata()
        assert shown.max() <= one["largest_fall"] + 1e-6 and -shown.min() <= one["largest_rise"] + 1e-6
    assert explanations["occlusion"]["settings"]["box_voxels"] == [6, 6, 4]  # 6 mm of 9.6 / 10, 7.2 / 7 and 10.2 / 7 mm


def test_expert_maps_curves_and_the_matrix_of_tasks(explained, run_dir, image):
    told, out, _ = explained
    explanations = told["subjects"][0]["explanations"]
    run = load_run(run_dir)
    canonical, affine = read_canonical(run, SubjectFiles("s1", [image]))
    first = nib.load(out / "s1_experts_layer0.nii.gz")
    assert first.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(first.dataobj), to_input_grid(expert_map(run, canonical)[0], affine) + 1)
    second = np.asarray(nib.load(out / "s1_experts_layer0_choice2.nii.gz").dataobj)
    assert (np.asarray(first.dataobj) != second).all() and set(np.unique(second)) <= {1, 2, 3, 4}
    assert len(explanations["experts"]["visits"]["0"]) == 4

    with (out / "s1_tasks.csv").open() as file:
        rows = list(csv.reader(file))
    matrix = np.array([[float(x) for x in row[1:]] for row in rows[1:]])
    assert rows[0] == ["reads", "grade", "age"] and np.allclose(matrix.sum(1), 1, atol=1e-5)
    assert np.allclose(matrix, explanations["tasks"]["mean"]) and np.allclose(np.mean(explanations["tasks"]["heads"], 0), matrix)

    curves = json.loads((out / "kan_grade.json").read_text())["layers"]
    head = run.net.volume_heads.heads.head_of("grade")
    for layer, module in zip(curves, head):
        x = torch.tensor(list(layer["x"].values())).T
        assert len(layer["x"]) == module.linear.in_features
        with torch.no_grad():
            expected = (module(x) - module.linear.bias).T
        for name, row in zip(next(iter(layer["y"].values())), expected):
            total = torch.tensor([of_input[name] for of_input in layer["y"].values()]).sum(0)
            assert torch.allclose(total, row, atol=1e-4), name
    assert list(next(iter(curves[1]["y"].values()))) == TASKS["grade"].classes and "size of white" in curves[0]["x"]
    for picture in ("kan_grade.png", "kan_age.png", "s1_tasks.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")


def test_what_is_there_is_skipped_and_what_was_cut_short_goes_on(explained, run_dir, image, tmp_path, monkeypatch):
    told, out, _ = explained
    given = ["--checkpoint", run_dir, "--output", out, "--json", "--input", image, "--steps", "6", "--occluder"]
    before = {path: path.stat().st_mtime_ns for path in out.glob("s1*.nii.gz")}
    again = call(*given, "6mm")
    assert json.loads(again.stdout)["subjects"][0]["explanations"] == told["subjects"][0]["explanations"]
    assert "5 explanations done before" in again.stderr and all(path.stat().st_mtime_ns == at for path, at in before.items())
    other = json.loads(call(*given, "4vox").stdout)["subjects"][0]
    assert "occlusion" not in other["skipped"] and len(other["skipped"]) == 4

    real, boxes = subject_maps.occlusion, []

    def cut_short(*args, progress, **kwargs):
        def stop(done, total):
            boxes.append(done)
            progress(done, total)
            if done == 3:
                raise KeyboardInterrupt

        return real(*args, progress=stop, **kwargs)

    asked = [
        "--checkpoint",
        run_dir,
        "--output",
        tmp_path,
        "--what",
        "occlusion",
        "--task",
        "age",
        "--occluder",
        "5vox",
        "--input",
        image,
    ]
    monkeypatch.setattr(subject_maps, "occlusion", cut_short)
    assert call(*asked).exit_code == 130 and boxes == [1, 2, 3]
    (left,) = tmp_path.glob(".s1_occlusion-*.npy")
    assert np.isfinite(np.load(left)[:3]).all() and np.isnan(np.load(left)[3:]).all()
    np.save(left, np.where(np.isnan(np.load(left)), np.nan, 7.0))  # so that what was kept can be told from what comes now
    monkeypatch.setattr(subject_maps, "occlusion", real)
    assert call(*asked).exit_code == 0
    assert nib.load(tmp_path / "s1_occlusion_age.nii.gz").get_fdata().max() == pytest.approx(7)
    assert {path.name for path in tmp_path.iterdir()} == {"s1_occlusion_age.nii.gz", "s1_explain.json", "explain.json"}


def test_one_bad_subject_does_not_stop_the_rest(run_dir, image, tmp_path):
    asked = ["--checkpoint", run_dir, "--output", tmp_path, "--what", "experts", "--json"]
    done = call(*asked, "--input", tmp_path / "absent.nii.gz", image)
    assert done.exit_code == 1 and "error: absent: " in done.stderr
    assert list(json.loads(done.stdout)["failed"]) == ["absent"] and (tmp_path / "s1_experts_layer0.nii.gz").is_file()
    none = call(*asked, "--input", tmp_path / "absent.nii.gz")
    assert (none.exit_code, none.stdout) == (2, "")


def refusal(*args: str | Path) -> str:
    result = call(*args)
    assert result.exit_code == 2 and result.stdout == "", result.output
    (line,) = result.stderr.splitlines()
    return line


def test_bad_input_is_one_line(run_dir, image, tmp_path, monkeypatch):
    given = ["--checkpoint", run_dir, "--output", tmp_path / "out", "--input", image]
    assert refusal(*given, "--what", "rolout") == "error: --what: 'rolout' is no explanation. Fix: did you mean 'rollout'?"
    assert refusal(*given, "--task", "tisue") == "error: --task: the run has no task 'tisue'. Fix: did you mean 'tissue'?"
    line = refusal(*given, "--task", "tissue", "--class", "whit")
    assert line == "error: --class: task 'tissue' has no class 'whit'. Fix: did you mean 'white'?"
    assert "'white' is a class of which task?" in refusal(*given, "--class", "white")
    assert "task 'age' is a regression: it has no classes" in refusal(*given, "--task", "age", "--class", "old")
    assert "Fix: write it as 20mm or 8vox." in refusal(*given, "--occluder", "20")
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    line = "error: --what gradients: integrated gradients need captum. Fix: pip install 'mri_ds[explain]'."
    assert refusal(*given, "--what", "experts,gradients") == line
    plain = save_run(tmp_path / "plain", use_moe=False, use_kan=False, use_cross_task=False)
    given[1] = plain
    for kind, why in {"experts": "no mixture", "kan": "no KAN heads", "tasks": "no attention between tasks"}.items():
        assert why in refusal(*given, "--what", kind) and "leave it out of --what" in refusal(*given, "--what", kind)
    done = call(*given, "--task", "tissue", "--class", "white", "--occluder", "8vox", "--overlap", "0")
    assert done.exit_code == 0, done.output
    assert [line.split(":")[0] for line in done.stderr.splitlines() if "note" in line] == ["note"] * 4
    written = {Path(line).name for line in done.stdout.splitlines()}
    assert written == {"s1_rollout_tissue-white.nii.gz", "s1_occlusion_tissue-white.nii.gz", "explain.json"}
    folds = tmp_path / "folds"
    for number in range(2):
        write_run(folds / f"fold_{number}", seed=number)
    given[1] = folds
    assert "2 networks or flips are averaged here" in refusal(*given)
