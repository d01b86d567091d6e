"""NIfTI reading and writing: worked numbers, one line for each kind of bad file, and what must not travel."""

import gzip
import os
import re
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mri_ds.data.nifti import MAX_VOXELS, read_image, read_label, write_image, write_label
from mri_ds.errors import InputError

REAL = Path(os.environ.get("MRI_DS_REAL_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"no real MRI in {REAL}: set MRI_DS_REAL_DATA")
OBLIQUE = np.array([[0.0, -1.2, 0.1, 5], [1.0, 0.0, 0.2, -7], [0.05, 0.3, 2.5, 11], [0, 0, 0, 1]])  # sheared: no q-form says it


def ramp(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def save(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None, **header: object) -> Path:
    """A file as another program would write it, some header fields set by force."""
    image = nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine)
    for name, value in header.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def patch(path: Path, offset: int, value: np.ndarray) -> Path:
    """Overwrites bytes of an uncompressed file."""
    content = bytearray(path.read_bytes())
    content[offset : offset + value.nbytes] = value.tobytes()
    path.write_bytes(content)
    return path


def refusal(read, path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read(path)
    text = str(caught.value)
    assert text.startswith(str(path)) and "Fix: " in text and "\n" not in text
    return text


class TestReading:
    def test_axes_are_those_of_the_file(self, tmp_path):
        voxels = ramp(2, 3, 4)
        volume = read_image(save(tmp_path / "a.nii.gz", voxels, np.diag([1, 2, 3, 1])))
        assert volume.voxels.shape == (1, 2, 3, 4) and volume.voxels.dtype == np.float32 and volume.voxels.flags["C_CONTIGUOUS"]
        assert volume.voxels[0, 1, 2, 3] == voxels[1, 2, 3] == 23
        assert volume.spacing_mm.tolist() == [1, 2, 3]

    def test_fourth_axis_becomes_the_channel(self, tmp_path):
        voxels = ramp(2, 3, 4, 5)
        volume = read_image(save(tmp_path / "a.nii", voxels))
        assert volume.voxels.shape == (5, 2, 3, 4)
        np.testing.assert_array_equal(volume.voxels[4], voxels[..., 4])

    def test_trailing_single_axes_are_dropped(self, tmp_path):
        assert read_image(save(tmp_path / "a.nii", ramp(2, 3, 4, 1, 1))).voxels.shape == (1, 2, 3, 4)
        assert read_label(save(tmp_path / "b.nii", ramp(2, 3, 4, 1, dtype=np.uint8))).voxels.shape == (2, 3, 4)

    def test_slope_and_intercept(self, tmp_path):
        path = save(tmp_path / "a.nii", ramp(2, 3, 4, dtype=np.int16))
        patch(path, 112, np.array([0.5, 10], dtype=np.float32))  # scl_slope, scl_inter
        assert read_image(path).voxels[0, 1, 2, 3] == 23 * 0.5 + 10
        patch(path, 112, np.array([np.nan, np.nan], dtype=np.float32))  # not scaled, says the standard's common reading
        assert read_image(path).voxels[0, 1, 2, 3] == 23

    def test_nifti_2(self, tmp_path):
        nib.save(nib.Nifti2Image(ramp(2, 3, 4), np.diag([2, 2, 2, 1])), tmp_path / "a.nii.gz")
        assert read_image(tmp_path / "a.nii.gz").spacing_mm.tolist() == [2, 2, 2]

    def test_s_form_wins_unless_its_code_is_zero(self, tmp_path):
        image = nib.Nifti1Image(ramp(2, 3, 4), None)
        image.set_qform(np.diag([3, 3, 3, 1]), code=1)
        image.set_sform(np.diag([2, 2, 2, 1]), code=1)
        nib.save(image, tmp_path / "a.nii")
        assert read_image(tmp_path / "a.nii").spacing_mm.tolist() == [2, 2, 2]
        image.set_sform(np.diag([2, 2, 2, 1]), code=0)
        nib.save(image, tmp_path / "b.nii")
        assert read_image(tmp_path / "b.nii").spacing_mm.tolist() == [3, 3, 3]

    def test_without_forms_there_are_voxel_sizes_alone(self, tmp_path):
        """As ANALYZE has it: i runs to the left, and the middle of the volume is the origin."""
        path = save(tmp_path / "a.nii", ramp(3, 4, 5), np.diag([2, 3, 4, 1]))
        patch(path, 252, np.zeros(2, dtype=np.int16))  # qform_code, sform_code
        np.testing.assert_allclose(read_image(path).affine, [[-2, 0, 0, 2], [0, 3, 0, -4.5], [0, 0, 4, -8], [0, 0, 0, 1]])

    @pytest.mark.parametrize(("code", "millimetres"), [(0, 2.0), (2, 2.0), (1, 2000.0), (3, 0.002), (1 + 8, 2000.0)])
    def test_units_are_converted_to_millimetres(self, tmp_path, code, millimetres):
        """Space in the lowest three bits, time (8: seconds) above them."""
        volume = read_image(save(tmp_path / "a.nii", ramp(2, 3, 4), np.diag([2, 2, 2, 1]), xyzt_units=code))
        np.testing.assert_allclose(volume.spacing_mm, millimetres)

    def test_labels_stored_as_float_or_scaled(self, tmp_path):
        for value in (1.99999, 2.00001):
            path = save(tmp_path / "a.nii.gz", np.full((2, 3, 4), value, dtype=np.float32))
            assert read_label(path).voxels.dtype == np.int16 and set(np.unique(read_label(path).voxels)) == {2}

    def test_an_empty_mask_is_a_label(self, tmp_path):
        assert not read_label(save(tmp_path / "a.nii", np.zeros((2, 3, 4), np.uint8))).voxels.any()


class TestRefusals:
    def test_file_names(self, tmp_path):
        assert "no such file" in refusal(read_image, tmp_path / "absent.nii.gz")
        assert "cannot be opened (File name too long)" in refusal(read_image, tmp_path / f"{'x' * 300}.nii")
        (tmp_path / "folder.nii").mkdir()
        assert "is not a NIfTI file" in refusal(read_image, tmp_path / "folder.nii")
        save(tmp_path / "a.nii", ramp(2, 3, 4)).rename(tmp_path / "._a.nii")
        assert "is not a NIfTI file" in refusal(read_image, tmp_path / "._a.nii")
        (tmp_path / "a.png").write_bytes(b"x")
        assert "is not a NIfTI file" in refusal(read_image, tmp_path / "a.png")

    def test_empty_file(self, tmp_path):
        (tmp_path / "a.nii.gz").touch()
        assert "file is empty" in refusal(read_image, tmp_path / "a.nii.gz")

    # mtime=0: a time stamp would give the parameter another id in each xdist worker
    @pytest.mark.parametrize("content", [b"no image" * 100, b"\x1f\x8b" + b"0" * 1000, gzip.compress(b"0" * 1000, mtime=0)])
    @pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
    def test_not_nifti(self, tmp_path, name, content):
        (tmp_path / name).write_bytes(content)
        assert "cannot be read as NIfTI" in refusal(read_image, tmp_path / name)

    @pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
    def test_truncated_anywhere(self, tmp_path, name):
        content = save(tmp_path / name, np.random.default_rng(0).normal(size=(9, 9, 9)).astype(np.float32)).read_bytes()
        for length in [10, 200, 348, 360, len(content) // 2, len(content) - 9, len(content) - 1]:
            (tmp_path / name).write_bytes(content[:length])
            refusal(read_image, tmp_path / name)

    def test_flipped_bits_fail_the_checksum(self, tmp_path):
        path = save(tmp_path / "a.nii.gz", np.random.default_rng(0).normal(size=(9, 9, 9)).astype(np.float32))
        content = bytearray(path.read_bytes())
        content[-6] ^= 0xFF  # inside the stream's CRC: every voxel still decodes
        path.write_bytes(content)
        assert "CRC" in refusal(read_image, path)

    def test_damage_in_the_middle_of_a_compressed_file(self, tmp_path):
        path = save(tmp_path / "a.nii.gz", np.random.default_rng(0).normal(size=(40, 40, 40)).astype(np.float32))
        content = bytearray(path.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 50] = b"\xff" * 50
        path.write_bytes(content)
        assert "voxels cannot be read" in refusal(read_image, path)

    def test_surfaces_in_a_file_called_nii(self, tmp_path):
        axes = (nib.cifti2.ScalarAxis(["thickness"]), nib.cifti2.BrainModelAxis.from_mask(np.ones(30), "CORTEX_LEFT"))
        nib.save(nib.Cifti2Image(np.ones((1, 30)), axes), tmp_path / "a.dscalar.nii")
        assert "is CIFTI (surfaces), not a volume. Fix: convert it" in refusal(read_image, tmp_path / "a.dscalar.nii")

    @pytest.mark.parametrize("shape", [(64, 64), (64, 64, 1), (1, 64, 64), (64, 64, 1, 1)])
    def test_two_dimensional(self, tmp_path, shape):
        assert "image is 2-D (shape 64" in refusal(read_image, save(tmp_path / "a.nii", ramp(*shape))).replace("1 x 64", "64")

    @pytest.mark.parametrize("shape", [(2, 3, 4, 5, 6), (64, 64, 1, 3)])
    def test_neither_a_volume_nor_channels_of_one(self, tmp_path, shape):
        text = refusal(read_image, save(tmp_path / "a.nii", ramp(*shape)))
        assert (
            f"image has shape {' x '.join(map(str, shape))}. Fix: give a 3-D volume, or a 4-D one with the channels last." in text
        )

    def test_colour_and_complex(self, tmp_path):
        rgb = np.zeros((4, 4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
        assert "voxels are RGB" in refusal(read_image, save(tmp_path / "a.nii", rgb))
        assert "voxels are complex64" in refusal(read_image, save(tmp_path / "b.nii", np.ones((4, 4, 4), np.complex64)))

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_values_that_are_not_finite(self, tmp_path, bad):
        voxels = ramp(4, 4, 4)
        voxels[0, 1, 2] = bad
        for read in (read_image, read_label):
            assert "1 of 64 voxels are NaN or infinite" in refusal(read, save(tmp_path / "a.nii.gz", voxels))

    def test_values_that_float32_cannot_hold(self, tmp_path):
        path = save(tmp_path / "a.nii", ramp(2, 3, 4).astype(np.float64) * 1e300)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # numpy's own line about it would be a second one
            assert "23 of 24 voxels are NaN or infinite" in refusal(read_image, path)

    def test_constant_image_and_constant_channel(self, tmp_path):
        assert "image is constant (every voxel 7)" in refusal(read_image, save(tmp_path / "a.nii", np.full((4, 4, 4), 7.0)))
        two = np.stack([ramp(4, 4, 4), np.zeros((4, 4, 4))], axis=-1)
        assert "channel 1 is constant" in refusal(read_image, save(tmp_path / "b.nii", two))

    @pytest.mark.parametrize(
        ("values", "words"),
        [([0, 0.5], "0.5 is not an integer"), ([0, -1], "-1 is outside"), ([0, 40000], "40000 is outside")],
    )
    def test_label_values(self, tmp_path, values, words):
        labels = np.array([[values] * 2] * 2, dtype=np.float32)
        assert words in refusal(read_label, save(tmp_path / "a.nii", labels))

    def test_label_with_channels(self, tmp_path):
        assert "5 channels" in refusal(read_label, save(tmp_path / "a.nii", ramp(2, 3, 4, 5, dtype=np.uint8)))

    def test_affines(self, tmp_path):
        path = save(tmp_path / "a.nii", ramp(2, 3, 4))
        patch(path, 280, np.array([np.nan], dtype=np.float32))  # srow_x[0]
        assert "affine holds NaN" in refusal(read_image, path)
        patch(path, 280, np.zeros(4, dtype=np.float32))  # srow_x
        assert "affine is singular" in refusal(read_image, path)
        patch(path, 280, np.array([1, 1, 0, 0, 0, 1e-5, 0, 0], dtype=np.float32))  # i and j run one way, but for rounding
        assert "affine is singular (rows [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])" in refusal(read_image, path)

    @pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
    def test_more_voxels_than_the_file_can_hold(self, tmp_path, name):
        """600^3 float32 would be 864 MB: refused by arithmetic, before any of it is allocated."""
        plain = patch(save(tmp_path / "b.nii", ramp(8, 8, 8)), 42, np.array([600, 600, 600], dtype=np.int16))  # dim[1:4]
        content = plain.read_bytes()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
        assert "600 x 600 x 600 voxels (864000" in refusal(read_image, tmp_path / name)

    def test_more_voxels_than_the_cap(self, tmp_path):
        path = patch(save(tmp_path / "a.nii", ramp(8, 8, 8)), 42, np.array([30000, 30000, 30000], dtype=np.int16))
        assert f"over {MAX_VOXELS}" in refusal(read_image, path)

    @pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
    @pytest.mark.parametrize("offset", [1e12, np.nan, np.inf, -1.0, 0.0, 351.0, 2.0**26 + 32])
    def test_voxels_said_to_lie_nowhere(self, tmp_path, name, offset):
        plain = patch(save(tmp_path / "b.nii", ramp(8, 8, 8)), 108, np.array([offset], dtype=np.float32))  # vox_offset
        (tmp_path / name).write_bytes(gzip.compress(plain.read_bytes()) if name.endswith("gz") else plain.read_bytes())
        assert f"voxels are said to begin at byte {offset:g}" in refusal(read_image, tmp_path / name)

    @pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
    def test_voxels_said_to_lie_beyond_the_file(self, tmp_path, name):
        plain = patch(save(tmp_path / "b.nii", ramp(8, 8, 8)), 108, np.array([2.0**25], dtype=np.float32))  # vox_offset
        (tmp_path / name).write_bytes(gzip.compress(plain.read_bytes()) if name.endswith("gz") else plain.read_bytes())
        assert "can hold" in refusal(read_image, tmp_path / name)

    def test_nibabel_keeps_its_doubts_to_itself(self, tmp_path, caplog):
        path = patch(save(tmp_path / "a.nii", ramp(8, 8, 8)), 254, np.array([99], dtype=np.int16))  # sform_code
        read_image(path)
        assert not caplog.records

    def test_random_damage_to_the_header_never_escapes(self, tmp_path):
        """Whatever 16 random bytes of the header become, the reader answers with a volume or with one line."""
        rng, good = np.random.default_rng(0), save(tmp_path / "good.nii", ramp(6, 5, 4)).read_bytes()
        path, num_refused = tmp_path / "a.nii", 0
        for _ in range(300):
            content = bytearray(good)
            for at in rng.integers(4, 352, size=16):  # the first four bytes alone decide that this is NIfTI at all
                content[at] = rng.integers(256)
            path.write_bytes(content)
            try:
                volume = read_image(path)
                assert np.isfinite(volume.voxels).all() and np.isfinite(volume.affine).all()
            except InputError as err:
                assert str(err).startswith(str(path))
                num_refused += 1
        assert 50 < num_refused <= 300


class TestWriting:
    @pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
    def test_round_trip(self, tmp_path, name):
        labels = ramp(3, 4, 5, dtype=np.int64)
        write_label(tmp_path / name, labels, OBLIQUE)
        volume = read_label(tmp_path / name)
        np.testing.assert_array_equal(volume.voxels, labels)
        np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-6)

    def test_image_round_trip(self, tmp_path):
        image = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
        write_image(tmp_path / "new" / "a.nii.gz", image, OBLIQUE)
        np.testing.assert_array_equal(read_image(tmp_path / "new" / "a.nii.gz").voxels, image)
        write_image(tmp_path / "b.nii", image[:1], OBLIQUE)
        np.testing.assert_array_equal(read_image(tmp_path / "b.nii").voxels, image[:1])
        assert nib.load(tmp_path / "b.nii").shape == (3, 4, 5)  # one channel is no fourth axis

    @pytest.mark.parametrize(("highest", "dtype"), [(1, np.uint8), (255, np.uint8), (256, np.int16), (40000, np.int32)])
    def test_smallest_integers(self, tmp_path, highest, dtype):
        write_label(tmp_path / "a.nii", np.array([0, highest]).reshape(2, 1, 1).repeat(2, axis=1), np.eye(4))
        assert nib.load(tmp_path / "a.nii").get_data_dtype() == dtype

    def test_both_forms_where_both_can_say_it(self, tmp_path):
        turned = np.array([[0.0, 0, -2, 5], [1.5, 0, 0, -7], [0, 1, 0, 11], [0, 0, 0, 1]])
        write_label(tmp_path / "a.nii", ramp(3, 4, 5, dtype=np.uint8), turned)
        header = nib.load(tmp_path / "a.nii").header
        np.testing.assert_allclose(header.get_qform(coded=True)[0], turned, atol=1e-5)
        np.testing.assert_allclose(header.get_sform(coded=True)[0], turned)
        assert header["qform_code"] == header["sform_code"] == 1  # the scanner's own coordinates

    def test_shear_is_left_to_the_s_form(self, tmp_path):
        write_label(tmp_path / "a.nii", ramp(3, 4, 5, dtype=np.uint8), OBLIQUE)
        header = nib.load(tmp_path / "a.nii").header
        assert header.get_qform(coded=True) == (None, 0)
        np.testing.assert_allclose(header.get_sform(), OBLIQUE, atol=1e-6)

    def test_same_voxels_same_bytes(self, tmp_path):
        for name in ("a.nii.gz", "b.nii.gz"):
            write_label(tmp_path / name, ramp(3, 4, 5, dtype=np.uint8), OBLIQUE)
        content = (tmp_path / "a.nii.gz").read_bytes()
        assert content == (tmp_path / "b.nii.gz").read_bytes()
        assert content[3] == 0 and content[4:8] == bytes(4)  # RFC 1952: no file name, no time stamp

    def test_a_file_is_replaced_not_written_over(self, tmp_path):
        """Who has the old file open keeps it whole; and nothing is left beside the new one."""
        write_label(tmp_path / "a.nii.gz", ramp(3, 4, 5, dtype=np.uint8), np.eye(4))
        with (tmp_path / "a.nii.gz").open("rb") as old:
            write_label(tmp_path / "a.nii.gz", ramp(5, 4, 3, dtype=np.uint8), np.eye(4))
            assert nib.Nifti1Image.from_bytes(gzip.decompress(old.read())).shape == (3, 4, 5)
        assert read_label(tmp_path / "a.nii.gz").voxels.shape == (5, 4, 3)
        assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]

    @pytest.mark.parametrize("fault", [KeyboardInterrupt, OSError(28, "No space left on device")])
    def test_what_stands_there_stays_until_the_new_file_is_whole(self, tmp_path, monkeypatch, fault):
        write_label(tmp_path / "a.nii.gz", ramp(3, 4, 5, dtype=np.uint8), np.eye(4))
        content = (tmp_path / "a.nii.gz").read_bytes()

        def half_write(path: Path, data: bytes) -> None:
            with path.open("wb") as file:
                file.write(data[: len(data) // 2])
            raise fault

        monkeypatch.setattr(Path, "write_bytes", half_write)
        with pytest.raises((KeyboardInterrupt, InputError), match=r"^$|cannot be written \(No space left on device\)"):
            write_label(tmp_path / "a.nii.gz", ramp(5, 4, 3, dtype=np.uint8), np.eye(4))
        assert (tmp_path / "a.nii.gz").read_bytes() == content
        assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]

    def test_a_place_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match="cannot be written"):
            write_label(tmp_path / "file" / "a.nii", ramp(3, 4, 5, dtype=np.uint8), np.eye(4))
        (tmp_path / "a.nii").mkdir()
        with pytest.raises(InputError, match="cannot be written"):
            write_label(tmp_path / "a.nii", ramp(3, 4, 5, dtype=np.uint8), np.eye(4))
        assert not list(tmp_path.glob(".*"))

    def test_identifiers_do_not_travel(self, tmp_path):
        name = b"DOE^JANE"
        image = nib.Nifti1Image(ramp(3, 4, 5, dtype=np.uint8), np.eye(4))
        for field in ("descrip", "db_name", "aux_file", "intent_name"):
            image.header[field] = name
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", name))
        nib.save(image, tmp_path / "a.nii")
        assert (tmp_path / "a.nii").read_bytes().count(name) == 5
        volume = read_label(tmp_path / "a.nii")
        write_label(tmp_path / "b.nii", volume.voxels, volume.affine)
        write_image(tmp_path / "c.nii", read_image(tmp_path / "a.nii").voxels, volume.affine)
        assert all(name not in (tmp_path / new).read_bytes() for new in ("b.nii", "c.nii"))


@needs_real
class TestRealFiles:
    def test_every_twentieth_hippocampus(self):
        """NaN slopes, float32 and uint8, maxima to 1.7e6."""
        paths = sorted((REAL / "Task04_Hippocampus" / "imagesTr").glob("*.nii.gz"))[::20]
        assert len(paths) >= 10
        for path in paths:
            volume, label = read_image(path), path.parents[1] / "labelsTr" / path.name
            assert volume.voxels.shape[0] == 1 and volume.spacing_mm.tolist() == [1, 1, 1]
            np.testing.assert_array_equal(volume.voxels[0], nib.load(path).get_fdata(dtype=np.float32))
            if label.exists():
                assert set(np.unique(read_label(label).voxels)) == {0, 1, 2}

    def test_a_q_form_without_s_form_stored_from_left_to_right(self):
        volume = read_label(REAL / "ms_lesions" / "patient07_lesions.nii.gz")
        np.testing.assert_allclose(volume.affine, [[-1, 0, 0, 90], [0, 1, 0, -126], [0, 0, 1, -72], [0, 0, 0, 1]])
        assert set(np.unique(volume.voxels)) == {0, 1}

    def test_a_truncated_real_file(self, tmp_path):
        content = (REAL / "ms_lesions" / "patient07_T2.nii.gz").read_bytes()
        (tmp_path / "a.nii.gz").write_bytes(content[: len(content) // 2])
        text = refusal(read_image, tmp_path / "a.nii.gz")
        assert re.search("truncated|end-of-stream", text)
