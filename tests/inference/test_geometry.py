"""From NIfTI to NIfTI, through the shard's bytes and through the predictor: nothing moves, and the header stays word for word.

48 orientations, oblique, anisotropic, forms in conflict, all codes and units, NIfTI-1 and -2. nibabel reads what was written.
"""

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch import nn

from mri_ds.config import DataConfig, RunConfig, TaskConfig
from mri_ds.data.geometry import FIELDS, read_geometry
from mri_ds.data.layouts import SubjectFiles, load_subject
from mri_ds.data.members import decode_sample, encode_sample
from mri_ds.data.nifti import read_label, write_label
from mri_ds.data.preprocess import to_canonical
from mri_ds.inference import outputs, predict
from mri_ds.inference.run import Run

TURNS = [
    np.eye(3)[list(order)] * np.array(signs)[:, None]
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
UNIT_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 1e-3}
SHAPE = (5, 7, 6)


class Copy(nn.Module):
    """Says class 1 where the image is over its mean, class 2 where it is over 1 as well (in normalised values)."""

    def forward(self, image: torch.Tensor, spacing_mm: torch.Tensor) -> dict[str, torch.Tensor]:
        value = image[:, 0]
        return {"map": torch.stack([-value, value, 2 * value - 1], dim=1)}


@st.composite
def affines(draw, turn: np.ndarray, spacing) -> np.ndarray:
    """(4, 4) in mm: an orientation, tilted by up to 40 degrees about any axis."""
    axis = np.array(draw(st.tuples(*[st.floats(-1, 1)] * 3)))
    length = np.linalg.norm(axis)
    tilt = Rotation.from_rotvec(np.radians(draw(st.floats(0, 40))) * axis / length if length > 0.1 else np.zeros(3))
    affine = np.eye(4)
    affine[:3, :3] = tilt.as_matrix() @ turn @ np.diag(spacing)
    affine[:3, 3] = draw(st.tuples(*[st.floats(-200, 200)] * 3))
    return affine


@st.composite
def headers(draw) -> dict:
    """The forms, codes and units of a file. Only what the standard allows; the two forms need not agree."""
    turn = draw(st.sampled_from(TURNS))
    spacing = draw(st.tuples(*[st.floats(0.3, 7)] * 3))
    s_form = draw(affines(turn, spacing))
    conflict = draw(st.sampled_from(["none", "tilted", "mirrored", "other sizes"]))
    q_form = s_form.copy()
    if conflict == "tilted":
        q_form = draw(affines(turn, spacing))
    elif conflict == "mirrored":
        q_form[0] *= -1
    elif conflict == "other sizes":
        q_form[:3, :3] *= 1.25
    codes = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    return {
        "s_form": s_form,
        "q_form": q_form,
        "codes": codes,
        "unit": draw(st.sampled_from([0, 1, 2, 3])),
        "version": draw(st.sampled_from([1, 2])),
    }


def write_image(path: Path, header: dict, voxels: np.ndarray) -> None:
    """With nibabel, as a scanner's converter would: both forms in the header's own unit."""
    kind = nib.Nifti2Image if header["version"] == 2 else nib.Nifti1Image
    image = kind(voxels, None)
    to_unit = np.diag([1 / UNIT_MM[header["unit"]]] * 3 + [1])
    try:
        image.set_qform(to_unit @ header["q_form"], code=header["codes"][1])
    except ValueError:  # nibabel, our oracle, refuses some half turns, whose quaternion rounding makes longer than 1
        reject()
    image.set_sform(to_unit @ header["s_form"], code=header["codes"][0])
    image.header["xyzt_units"] = header["unit"]
    nib.save(image, path)


def raw(path: Path) -> dict:
    header = nib.load(path).header
    return {name: np.array(header[name][:4] if name == "pixdim" else header[name]) for name in FIELDS}


def in_mm(path: Path) -> np.ndarray:
    """Where nibabel says the voxels are, in mm."""
    image = nib.load(path)
    unit = UNIT_MM[int(image.header["xyzt_units"]) & 7]
    return np.diag([unit, unit, unit, 1]) @ image.affine


def places(affine: np.ndarray, shape) -> np.ndarray:
    return (np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]).reshape(-1, 3)


@pytest.fixture
def run() -> Run:
    """Its network sees any voxel size as it is: nothing is resampled."""
    config = RunConfig(
        data=DataConfig(spacing_mm=(1, 1, 1), patch=(8, 8, 8)),
        tasks={"map": TaskConfig(kind="segmentation", classes=["none", "one", "two"])},
    )
    return Run(Copy(), config, ["T1w"], torch.device("cpu"))


def for_spacing(run: Run, spacing_mm) -> Run:
    data = run.config.data.model_copy(update={"spacing_mm": tuple(spacing_mm)})
    return Run(run.net, run.config.model_copy(update={"data": data}), run.channels, run.device)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=headers(), seed=st.integers(0, 99))
def test_from_file_to_sample_to_shard_to_prediction_to_file(header, seed, run, tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "draw_case", lambda path, *_, **__: path)  # half a second each
    number = np.random.default_rng(seed).permutation(np.prod(SHAPE)).reshape(SHAPE)  # each voxel carries its own
    source = tmp_path / "sub-1_T1w.nii"
    write_image(source, header, number.astype(np.int16))
    affine_mm = in_mm(source)

    loaded = load_subject(SubjectFiles("sub-1", [source]), {})
    sample = decode_sample(encode_sample(to_canonical(loaded | {"targets": {"number": number.astype(np.int16)}})))
    assert np.array_equal(sample["image"][0], sample["targets"]["number"]), "image and label move together"
    came_from = places(affine_mm, SHAPE)[np.argsort(number.ravel())][sample["image"][0].astype(int).ravel()]
    assert np.abs(came_from - places(sample["affine"], sample["image"].shape[1:])).max() < 1e-3
    assert np.allclose(sample["spacing_mm"], np.linalg.norm(sample["affine"][:3, :3], axis=0))

    result = predict.predict_file(for_spacing(run, sample["spacing_mm"]), source, tmp_path / "out")
    written = Path(result["files"]["map"])
    value = (number - number.mean()) / number.std()
    assert np.array_equal(np.asarray(nib.load(written).dataobj), np.where(value > 1, 2, value > 0)), "voxel by voxel"
    for name, field in raw(source).items():
        assert np.array_equal(raw(written)[name], field), name
    assert type(nib.load(written)) is type(nib.load(source))
    assert np.array_equal(nib.load(written).affine, nib.load(source).affine)
    assert np.abs(read_label(written).affine - loaded["affine"]).max() < 1e-9
    volume = result["tasks"]["map"]["volume_ml"]["two"]
    assert volume == pytest.approx((value > 1).sum() * abs(np.linalg.det(affine_mm[:3, :3])) / 1000, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("code", ["RAS", "LPS", "ASL", "SRP"])
@pytest.mark.parametrize("margin", [None, 3.0])
def test_a_prediction_from_a_coarser_grid_lies_where_the_image_is(code, margin, run, tmp_path):
    """The network sees 2 mm and the body's box alone; the ball it finds is back on the 1 mm grid, in its place."""
    centred = np.indices((30, 34, 28)) - np.array([12, 18, 13]).reshape(3, 1, 1, 1)
    image = (200 - 10 * np.sqrt((centred**2).sum(axis=0))).clip(0).astype(np.float32)
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(code))
    nib.save(nib.Nifti1Image(image, np.eye(4)).as_reoriented(turn), tmp_path / "s.nii.gz")
    coarse = for_spacing(run, (2, 2, 2))
    coarse.config.data.crop_margin_mm = margin
    written = nib.load(predict.predict_file(coarse, tmp_path / "s.nii.gz", tmp_path / "out")["files"]["map"])
    labels = np.asarray(nib.as_closest_canonical(written).dataobj) > 0
    body = image[image > 0]
    truth = image > body.clip(*np.percentile(body, (0.5, 99.5))).mean()
    assert nib.aff2axcodes(written.affine) == tuple(code)
    assert 2 * (labels & truth).sum() / (labels.sum() + truth.sum()) > 0.97


def test_no_free_text_of_the_input_is_written(run, tmp_path):
    image = nib.Nifti1Image(np.random.default_rng(0).normal(size=SHAPE).astype(np.float32), np.eye(4))
    for field in ("descrip", "aux_file", "intent_name", "db_name"):
        image.header[field] = b"DOE^JANE"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"DOE^JANE 1970-01-01"))
    nib.save(image, tmp_path / "s.nii")
    assert (tmp_path / "s.nii").read_bytes().count(b"DOE^JANE") >= 4
    geometry = read_geometry(tmp_path / "s.nii", np.eye(4))
    assert geometry is not None
    write_label(tmp_path / "out.nii", np.ones(SHAPE, dtype=np.int16), np.eye(4), geometry)
    assert b"DOE" not in (tmp_path / "out.nii").read_bytes()


def test_four_dimensions_give_a_map_of_three(run, tmp_path):
    """A time axis's step stays out of the map's header."""
    image = nib.Nifti1Image(np.random.default_rng(0).normal(size=(*SHAPE, 2)).astype(np.float32), np.diag([2, 2, 3, 1.0]))
    image.header.set_zooms((2, 2, 3, 2.5))
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, tmp_path / "s.nii.gz")
    two = Run(run.net, for_spacing(run, (2, 2, 3)).config, ["T1w", "T2w"], run.device)
    written = nib.load(predict.predict_file(two, tmp_path / "s.nii.gz", tmp_path / "out")["files"]["map"])
    assert written.shape == SHAPE and written.header.get_zooms() == (2, 2, 3)
    assert np.array_equal(written.affine, image.affine)


def test_other_files_have_no_nifti_geometry(tmp_path):
    (tmp_path / "scan.dcm").write_bytes(b"\0" * 132)
    (tmp_path / "s.nii").write_bytes(b"\x5c\x01" + b"\xff" * 400)
    for name in ("scan.dcm", ".", "absent.nii", "s.nii"):
        assert read_geometry(tmp_path / name, np.eye(4)) is None


def test_a_header_that_puts_the_voxels_elsewhere_is_not_copied(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, dtype=np.uint8), np.diag([2, 2, 2, 1.0])), tmp_path / "s.nii")
    assert read_geometry(tmp_path / "s.nii", np.diag([2, 2, 2, 1.0])) is not None
    assert read_geometry(tmp_path / "s.nii", np.diag([2, 2, -2, 1.0])) is None
