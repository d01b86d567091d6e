"""Where voxels lie: q-form and s-form in every combination against nibabel and SimpleITK, and what is said when they disagree."""

from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from mri_ds.data.nifti import read_image, read_label, write_image
from mri_ds.data.nifti.affine import turn_between
from mri_ds.errors import InputError

SHAPE = (4, 5, 6)
VOXELS = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
VERSIONS = (nib.Nifti1Image, nib.Nifti2Image)


def turned(axis: str, degrees: float) -> np.ndarray:
    """(4, 4) rotation about one world axis."""
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    angle, matrix = np.radians(degrees), np.eye(4)
    matrix[i, i] = matrix[j, j] = np.cos(angle)
    matrix[j, i], matrix[i, j] = np.sin(angle), -np.sin(angle)
    return matrix


def moved(x: float, y: float = 0, z: float = 0) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = x, y, z
    return matrix


def file(
    path: Path,
    *,
    s: np.ndarray | None = None,
    q: np.ndarray | None = None,
    codes: tuple[int, int] | None = None,
    version: type = nib.Nifti1Image,
    **fields: object,
) -> Path:
    """A file with these forms (codes: s, q; 1 where a form is given), then header fields set by force."""
    image = version(VOXELS, None)
    form = q if q is not None else s if s is not None else np.eye(4)
    image.header.set_qform(form, code=1, strip_shears=True)  # sets pixdim
    image.header.set_sform(s if s is not None else np.eye(4), code=1)
    content = bytearray(image.to_bytes())
    record = np.frombuffer(content, image.header.template_dtype, count=1)[0].copy()
    record["sform_code"], record["qform_code"] = codes or (s is not None, q is not None)
    for name, value in fields.items():
        record[name] = value
    content[: image.header.template_dtype.itemsize] = record.tobytes()
    path.write_bytes(content)
    return path


def oblique(rng: np.random.Generator, *, mirrored: bool = False) -> np.ndarray:
    affine = moved(*rng.normal(0, 50, 3)) @ turned("x", rng.uniform(0, 360)) @ turned("y", rng.uniform(0, 360))
    sizes = rng.uniform(0.3, 6, 3) * [1, 1, -1 if mirrored else 1]
    return affine @ turned("z", rng.uniform(0, 360)) @ np.diag([*sizes, 1])


def note(path: Path) -> str:
    """The one note of a file, which must name it."""
    (line,) = read_image(path).notes
    assert line.startswith(f"{path}: ") and "\n" not in line
    return line.removeprefix(f"{path}: ")


class TestWhichFormRules:
    @pytest.mark.parametrize("version", VERSIONS)
    @pytest.mark.parametrize(("s_code", "q_code"), product((0, 1, 4), (0, 1, 3)))
    def test_as_nibabel_says(self, tmp_path, version, s_code, q_code):
        """Random oblique and mirrored q-forms, random sheared s-forms, in every combination of codes."""
        for seed in range(12):
            rng = np.random.default_rng(seed)
            s = oblique(rng) + np.pad(rng.normal(0, 0.05, (3, 3)), ((0, 1), (0, 1)))
            q = oblique(rng, mirrored=seed % 2 == 1)
            path = file(tmp_path / "a.nii", s=s, q=q, codes=(s_code, q_code), version=version)
            affine = read_image(path).affine
            np.testing.assert_allclose(affine, nib.load(path).affine, atol=1e-5, rtol=1e-5)
            wanted = s if s_code else q if q_code else None
            if wanted is not None:
                np.testing.assert_allclose(affine, wanted, atol=1e-4)

    def test_a_quarter_turn_by_hand(self, tmp_path):
        """(a, b, c, d) = (cos 45, 0, 0, sin 45) turns x to y: i runs along +y by 2 mm, j along -x by 3 mm."""
        half = np.sqrt(0.5)
        sizes = [1, 2, 3, 4, 1, 1, 1, 1]
        path = file(tmp_path / "a.nii", codes=(0, 1), quatern_b=0, quatern_c=0, quatern_d=half, pixdim=sizes, qoffset_x=7)
        np.testing.assert_allclose(read_image(path).affine, [[0, -3, 0, 7], [2, 0, 0, 0], [0, 0, 4, 0], [0, 0, 0, 1]], atol=1e-6)
        sizes[0] = -1  # qfac
        file(path, codes=(0, 1), quatern_b=0, quatern_c=0, quatern_d=half, pixdim=sizes)
        assert read_image(path).affine[2, 2] == -4

    @pytest.mark.parametrize("mirrored", [False, True])
    @pytest.mark.parametrize("form", ["s", "q"])
    def test_as_simpleitk_says(self, tmp_path, form, mirrored):
        """ITK's world is LPS: x and y change sign."""
        affine = oblique(np.random.default_rng(3), mirrored=mirrored)
        path = file(tmp_path / "a.nii", **{form: affine})
        theirs = sitk.ReadImage(str(path))
        volume = read_image(path)
        for index in product((0, SHAPE[0] - 1), (0, SHAPE[1] - 1), (0, SHAPE[2] - 1)):
            world = np.array(theirs.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
            np.testing.assert_allclose((volume.affine @ [*index, 1])[:3], world, atol=1e-3)
            assert volume.voxels[0][index] == theirs[index]

    def test_shear_is_kept(self, tmp_path):
        sheared = np.array([[2, 0.6, 0, -10], [0, 2, 0.3, 4], [0, 0, 3, 5], [0, 0, 0, 1]])
        volume = read_image(file(tmp_path / "a.nii", s=sheared))
        np.testing.assert_allclose(volume.affine, sheared, atol=1e-6)
        np.testing.assert_allclose(volume.spacing_mm, [2, np.hypot(0.6, 2), np.hypot(0.3, 3)], rtol=1e-6)

    @pytest.mark.parametrize("form", ["s", "q"])
    @pytest.mark.parametrize(("code", "unit_mm"), [(0, 1), (1, 1000), (2, 1), (3, 0.001), (8 + 3, 0.001), (7, 1)])
    def test_units_scale_offsets_too(self, tmp_path, form, code, unit_mm):
        affine = moved(4, 5, 6) @ np.diag([2, 2, 3, 1])
        volume = read_image(file(tmp_path / "a.nii", **{form: affine}, xyzt_units=code))
        np.testing.assert_allclose(volume.affine, np.diag([unit_mm] * 3 + [1]) @ affine, rtol=1e-6)

    def test_labels_are_placed_as_images_are(self, tmp_path):
        path = file(tmp_path / "a.nii", s=oblique(np.random.default_rng(0)), q=np.eye(4))
        image, label = read_image(path), read_label(path)
        np.testing.assert_array_equal(image.affine, label.affine)
        assert image.notes == label.notes and len(label.notes) == 1


class TestNotes:
    def test_forms_that_agree_need_none(self, tmp_path):
        for seed in range(20):
            affine = oblique(np.random.default_rng(seed), mirrored=seed % 2 == 0)
            assert read_image(file(tmp_path / "a.nii", s=affine, q=affine)).notes == ()

    def test_one_form_alone_needs_none(self, tmp_path):
        assert read_image(file(tmp_path / "a.nii", s=moved(3), q=moved(50), codes=(1, 0))).notes == ()
        assert read_image(file(tmp_path / "a.nii", s=moved(3), q=moved(50), codes=(0, 1))).notes == ()

    def test_voxel_sizes_that_some_programs_believe_instead(self, tmp_path):
        """Where there is no q-form, ITK takes directions from the s-form and spacing from pixdim."""
        path = file(tmp_path / "a.nii", s=np.diag([1, 2, 3.5, 1]), pixdim=[1, 1, 2, 3, 0, 0, 0, 0])
        assert note(path) == "voxels are 1 x 2 x 3.5 by the s-form and 1 x 2 x 3 by pixdim; the s-form is used"
        assert sitk.ReadImage(str(path)).GetSpacing() == (1, 2, 3)
        np.testing.assert_allclose(read_image(path).spacing_mm, [1, 2, 3.5])

    @pytest.mark.parametrize("axis", "xyz")
    def test_a_turn(self, tmp_path, axis):
        s = moved(5, -6, 7) @ np.diag([1, 2, 3, 1])
        text = note(file(tmp_path / "a.nii", s=s, q=turned(axis, 12) @ s, codes=(4, 1)))
        assert text.startswith("s-form (MNI152) and q-form (scanner) are turned by 12.00 degrees and place the first voxel ")
        assert text.endswith("; the s-form is used")

    def test_an_offset_in_millimetres(self, tmp_path):
        path = file(tmp_path / "a.nii", s=np.eye(4), q=moved(3, 4, 0), codes=(2, 3))
        said = "s-form (aligned) and q-form (Talairach) are turned by 0.00 degrees and place the first voxel 5 mm apart"
        assert note(path).startswith(said)
        path = file(tmp_path / "b.nii", s=np.eye(4), q=moved(3, 4, 0), xyzt_units=3)
        assert "place the first voxel 0.005 mm apart and some corner 0.005 mm" in note(path)

    def test_spacing(self, tmp_path):
        """1 mm and 1.5 mm along k: (6 - 1) * 0.5 mm at the far end, nothing at the first voxel."""
        text = note(file(tmp_path / "a.nii", s=np.eye(4), q=np.diag([1, 1, 1.5, 1])))
        assert "place the first voxel 0 mm apart and some corner 2.5 mm" in text

    def test_left_and_right(self, tmp_path):
        s = np.diag([-1.0, 1, 1, 1])
        assert "mirror each other (LEFT AND RIGHT DIFFER)" in note(file(tmp_path / "a.nii", s=s, q=np.eye(4)))

    def test_less_than_a_tenth_of_a_voxel_is_rounding(self, tmp_path):
        s = np.diag([2.0, 1, 2, 1])  # a tenth of the smallest edge: 0.1 mm
        assert read_image(file(tmp_path / "a.nii", s=s, q=moved(0.09) @ s)).notes == ()
        assert "0.11 mm apart" in note(file(tmp_path / "a.nii", s=s, q=moved(0.11) @ s))

    @pytest.mark.parametrize("fields", [{"quatern_b": 3}, {"quatern_c": np.nan}, {"pixdim": [1, 1, 0, 1, 0, 0, 0, 0]}])
    def test_a_broken_q_form_beside_a_good_s_form(self, tmp_path, fields):
        path = file(tmp_path / "a.nii", s=moved(3), q=moved(3), **fields)
        assert note(path) == "the q-form is no valid form; the s-form is used"
        np.testing.assert_allclose(read_image(path).affine, moved(3))

    def test_no_form_at_all(self, tmp_path):
        assert note(file(tmp_path / "a.nii")).startswith("neither q-form nor s-form is set: left and right are a guess")

    def test_what_we_write_needs_none(self, tmp_path):
        for seed in range(10):
            write_image(tmp_path / "a.nii", VOXELS, oblique(np.random.default_rng(seed)))
            assert read_image(tmp_path / "a.nii").notes == ()

    def test_turn_between(self):
        """Sizes and shear are left aside; a mirror image is told."""
        for degrees in (0, 1, 90, 179):
            angle, is_mirrored = turn_between(np.diag([1.0, 2, 3, 1]), turned("y", degrees) @ np.diag([4.0, 1, 1, 1]))
            assert angle == pytest.approx(degrees, abs=1e-5) and not is_mirrored
        assert turn_between(np.eye(4), np.diag([1.0, 1, -1, 1]))[1]


class TestRefusals:
    @pytest.mark.parametrize(
        ("codes", "fields", "words"),
        [
            ((0, 1), {"quatern_b": 0.9, "quatern_c": 0.9}, "its quaternion is none"),
            ((0, 1), {"quatern_b": np.nan}, "affine holds NaN"),
            ((0, 1), {"qoffset_x": np.inf}, "affine holds NaN or infinity"),
            ((0, 1), {"pixdim": [1, 1, 0, 1, 0, 0, 0, 0]}, "affine is singular"),
            ((0, 0), {"pixdim": [1, 1, 0, 1, 0, 0, 0, 0]}, "affine is singular"),
            ((0, 0), {"pixdim": [1, 1, np.nan, 1, 0, 0, 0, 0]}, "affine holds NaN"),
            ((1, 1), {"srow_y": [0, 0, 0, 0]}, "affine is singular"),
            ((1, 1), {"srow_y": [0, 1, 0, -3e38]}, "affine holds -3e\\+38"),
            ((1, 1), {"srow_y": [0, 1e-30, 0, 0]}, "affine is singular"),
            ((1, 1), {"srow_y": [0, np.inf, 0, 0]}, "affine holds NaN or infinity"),
        ],
    )
    def test_the_form_that_rules_is_no_form(self, tmp_path, codes, fields, words):
        path = file(tmp_path / "a.nii", codes=codes, **fields)
        with pytest.raises(InputError, match=words) as caught:
            read_image(path)
        assert str(caught.value).startswith(f"{path}: ") and "Fix: " in str(caught.value)

    def test_a_quaternion_that_is_long_by_rounding(self, tmp_path):
        """A half turn about x, (b, c, d) = (1.0002, 0, 0)."""
        path = file(tmp_path / "a.nii", codes=(0, 1), quatern_b=1.0002, quatern_c=0, quatern_d=0)
        np.testing.assert_allclose(read_image(path).affine, np.diag([1, -1, -1, 1]), atol=1e-12)
