"""Every form a NIfTI file comes in: versions, byte orders, number types, containers. nibabel and SimpleITK are the oracles."""

import gzip
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from mri_ds.data.nifti import read_image, read_label, stem
from mri_ds.errors import InputError

SHAPE = (3, 4, 21)  # more slices than are scaled at a time
AFFINE = np.array([[0, 0, -2.0, 30], [1, 0, 0, -10], [0, 1.5, 0, 5], [0, 0, 0, 1]])
DTYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")
FLOAT32_RANGE = 2**24  # integers up to here are exact in float32


def values(dtype: str, shape: tuple[int, ...] = SHAPE, *, extreme: bool = True) -> np.ndarray:
    """Random numbers over the type's whole range, its ends among them."""
    rng, kind = np.random.default_rng(0), np.dtype(dtype)
    if kind.kind == "f":
        return (rng.normal(size=shape) * 10.0 ** rng.integers(-20, 20, size=shape)).astype(kind)
    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    if not extreme:
        low, high = max(low, -FLOAT32_RANGE), min(high, FLOAT32_RANGE)
    numbers = rng.integers(low, high, size=shape, dtype=kind, endpoint=True)
    numbers.flat[:2] = low, high
    return numbers


def save(path: Path, voxels: np.ndarray, order: str = "<", version: int = 1) -> Path:
    """A file of one version and byte order; "pair..." is two files."""
    single = not path.name.startswith("pair")
    kinds = {(1, True): nib.Nifti1Image, (2, True): nib.Nifti2Image, (1, False): nib.Nifti1Pair, (2, False): nib.Nifti2Pair}
    kind = kinds[version, single]
    header = kind.header_class(endianness=order)
    header.set_data_dtype(voxels.dtype.newbyteorder(order))
    nib.save(kind(voxels, AFFINE, header), path)
    return path


def with_slope(path: Path, slope: float, inter: float) -> Path:
    """scl_slope and scl_inter of a little-endian NIfTI-1 file."""
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([slope, inter], dtype="<f4").tobytes()
    path.write_bytes(content)
    return path


def refusal(path: Path, read=read_image) -> str:
    with pytest.raises(InputError) as caught:
        read(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and " Fix: " in text and "\n" not in text
    return text


class TestNumbers:
    @pytest.mark.parametrize(("dtype", "order", "version"), product(DTYPES, "<>", (1, 2)))
    def test_each_value_is_the_nearest_float32(self, tmp_path, dtype, order, version):
        voxels = values(dtype)
        path = save(tmp_path / "a.nii", voxels, order, version)
        raw = path.read_bytes()[:4]
        assert int.from_bytes(raw, "little" if order == "<" else "big") in (348, 540)
        image = read_image(path)
        np.testing.assert_array_equal(image.voxels[0], voxels.astype(np.float32))
        np.testing.assert_array_equal(image.voxels[0], np.asarray(nib.load(path).dataobj).astype(np.float32))
        np.testing.assert_allclose(image.affine, AFFINE)

    @pytest.mark.parametrize(("dtype", "order"), product(DTYPES[:8], "<>"))
    def test_integers_up_to_two_to_the_24_are_exact(self, tmp_path, dtype, order):
        voxels = values(dtype, extreme=False)
        assert [int(v) for v in read_image(save(tmp_path / "a.nii", voxels, order)).voxels.ravel()] == voxels.ravel().tolist()

    @pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8"])
    def test_as_simpleitk_reads_it(self, tmp_path, dtype):
        path = save(tmp_path / "a.nii.gz", values(dtype))
        theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(path))).T
        np.testing.assert_array_equal(read_image(path).voxels[0], theirs.astype(np.float32))

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_scaling_is_rounded_once(self, tmp_path, dtype):
        """slope * stored + inter in float64, then float32. In float32 throughout, a tenth of these differ in the last bit."""
        path = with_slope(save(tmp_path / "a.nii", values(dtype, extreme=False)), 0.1, 1000.7)
        stored = values(dtype, extreme=False).astype(np.float64)
        wanted = (stored * float(np.float32(0.1)) + float(np.float32(1000.7))).astype(np.float32)
        np.testing.assert_array_equal(read_image(path).voxels[0], wanted)
        np.testing.assert_array_equal(read_image(path).voxels[0], nib.load(path).get_fdata().astype(np.float32))

    @pytest.mark.parametrize("slope", [0.0, np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("inter", [0.0, 5.0, np.nan])
    def test_no_slope_means_no_scaling(self, tmp_path, slope, inter):
        path = with_slope(save(tmp_path / "a.nii", values("i2")), slope, inter)
        np.testing.assert_array_equal(read_image(path).voxels[0], values("i2"))

    def test_a_slope_without_an_intercept_is_damage(self, tmp_path):
        path = with_slope(save(tmp_path / "a.nii", values("i2")), 2.0, np.nan)
        assert "voxels are scaled by 2, but shifted by nan" in refusal(path)

    def test_a_slope_turns_signs(self, tmp_path):
        path = with_slope(save(tmp_path / "a.nii", values("u1")), -1.0, 255.0)
        np.testing.assert_array_equal(read_image(path).voxels[0], 255.0 - values("u1"))

    @pytest.mark.parametrize(
        ("code", "words"),
        [
            *[(0, "of no type"), (1, "single bits"), (32, "complex64"), (128, "RGB"), (2304, "RGBA"), (1536, "float128")],
            *[(1792, "complex128"), (2048, "complex256"), (77, "of unknown type 77")],
        ],
    )
    def test_what_is_no_plain_number(self, tmp_path, code, words):
        path = save(tmp_path / "a.nii", values("u1"))
        content = bytearray(path.read_bytes())
        content[70:72] = code.to_bytes(2, "little")
        path.write_bytes(content)
        assert f"voxels are {words}, not plain numbers. Fix: export a greyscale volume" in refusal(path)


class TestLabels:
    @pytest.mark.parametrize(("dtype", "order", "version"), product(DTYPES, "<>", (1, 2)))
    def test_every_type_holds_labels_exactly(self, tmp_path, dtype, order, version):
        highest = min(32767, np.iinfo(dtype).max) if np.dtype(dtype).kind != "f" else 32767
        labels = np.random.default_rng(1).integers(0, highest, size=SHAPE, endpoint=True).astype(dtype)
        volume = read_label(save(tmp_path / "a.nii.gz", labels, order, version))
        assert volume.voxels.dtype == np.int16 and volume.voxels.flags["C_CONTIGUOUS"]
        assert volume.voxels.tolist() == labels.astype(int).tolist()

    @pytest.mark.parametrize("value", [2**24 + 1, 2**53 + 1, 2**63 - 1, -(2**63)])
    def test_large_integers_are_refused_not_wrapped(self, tmp_path, value):
        """As int16, 2^24 + 1 would be class 1 and 2^63 - 1 would be class -1."""
        labels = np.zeros(SHAPE, dtype=np.int64)
        labels[0, 0, 0] = value
        assert "is outside 0..32767" in refusal(save(tmp_path / "a.nii", labels), read_label)

    def test_the_largest_unsigned_integer(self, tmp_path):
        labels = np.zeros(SHAPE, dtype=np.uint64)
        labels[0, 0, 0] = 2**64 - 1
        assert "label value 1.84467e+19 is outside" in refusal(save(tmp_path / "a.nii", labels), read_label)

    def test_scaled_labels(self, tmp_path):
        path = with_slope(save(tmp_path / "a.nii", np.full(SHAPE, 30, dtype=np.uint8)), 0.1, -1.0)
        assert set(read_label(path).voxels.flat) == {2}
        with_slope(path, 0.11, 0.0)
        assert "label value 3.3 is not an integer" in refusal(path, read_label)

    def test_a_scale_that_makes_labels_infinite(self, tmp_path):
        path = with_slope(save(tmp_path / "a.nii", np.full(SHAPE, 1e300)), 3e38, 0.0)
        assert "252 of 252 voxels are NaN or infinite" in refusal(path, read_label)


class TestContainers:
    @pytest.mark.parametrize("version", [1, 2])
    @pytest.mark.parametrize("order", "<>")
    @pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "pair.img", "pair.img.gz", "A.NII.GZ", "a.b.c.nii"])
    def test_each_reads_the_same(self, tmp_path, name, order, version):
        voxels = values("i2")
        path = save(tmp_path / name.lower(), voxels, order, version).rename(tmp_path / name)
        assert (len(list(tmp_path.iterdir())) == 2) == name.startswith("pair")
        image = read_image(path)
        np.testing.assert_array_equal(image.voxels[0], voxels)
        np.testing.assert_allclose(image.affine, AFFINE)

    @pytest.mark.parametrize("name", ["pair.img", "pair.img.gz"])
    def test_either_half_of_a_pair_will_do(self, tmp_path, name):
        path = save(tmp_path / name, values("i2"))
        other = path.with_name(name.replace("img", "hdr"))
        assert other.is_file()
        np.testing.assert_array_equal(read_image(other).voxels, read_image(path).voxels)

    def test_a_pair_of_which_one_half_is_gzipped(self, tmp_path):
        path = save(tmp_path / "pair.img", values("i2"))
        (tmp_path / "pair.img.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
        np.testing.assert_array_equal(read_image(tmp_path / "pair.img.gz").voxels[0], values("i2"))
        np.testing.assert_array_equal(read_image(tmp_path / "pair.hdr").voxels[0], values("i2"))

    def test_a_widowed_half(self, tmp_path):
        path = save(tmp_path / "pair.img", values("i2"))
        (tmp_path / "pair.hdr").unlink()
        assert "pair.hdr is missing beside it. Fix: a pair needs both" in refusal(path)
        save(path, values("i2"))
        path.unlink()
        assert "pair.img is missing beside it" in refusal(tmp_path / "pair.hdr")

    def test_a_voxel_file_that_is_short(self, tmp_path):
        path = save(tmp_path / "pair.img", values("i2"))
        path.write_bytes(path.read_bytes()[:-1])
        assert "more than its file can hold" in refusal(path)
        path.with_suffix(".hdr").write_bytes(b"")
        assert "begins with b''" in refusal(path)

    def test_kinds_that_are_named_as_the_other(self, tmp_path):
        single, pair = save(tmp_path / "a.nii", values("i2")), save(tmp_path / "pair.img", values("i2"))
        (tmp_path / "pair.hdr").rename(tmp_path / "b.nii")
        assert "header says that header and voxels are a pair of files" in refusal(tmp_path / "b.nii")
        single.rename(tmp_path / "pair.hdr")
        assert "header says that header and voxels are one file" in refusal(pair)

    def test_analyze_is_not_nifti(self, tmp_path):
        nib.save(nib.AnalyzeImage(values("i2"), AFFINE), tmp_path / "pair.img")
        assert "is ANALYZE 7.5, which does not say left from right. Fix: convert it" in refusal(tmp_path / "pair.img")

    def test_compression_that_the_name_does_not_tell(self, tmp_path):
        plain = save(tmp_path / "a.nii", values("i2"))
        (tmp_path / "b.nii.gz").write_bytes(plain.read_bytes())
        (tmp_path / "c.nii").write_bytes(gzip.compress(plain.read_bytes()))
        for name in ("b.nii.gz", "c.nii"):
            np.testing.assert_array_equal(read_image(tmp_path / name).voxels[0], values("i2"))

    @pytest.mark.parametrize("cut", [1, 300, 348, 352, 400, 839])
    def test_gzip_in_several_members(self, tmp_path, cut):
        """As bgzip writes it; the cut may fall anywhere, and padding may follow."""
        content = save(tmp_path / "a.nii", values("i2")).read_bytes()
        assert len(content) == 352 + 2 * np.prod(SHAPE) == 856
        members = gzip.compress(content[:cut]) + gzip.compress(content[cut:]) + bytes(100)
        (tmp_path / "b.nii.gz").write_bytes(members)
        np.testing.assert_array_equal(read_image(tmp_path / "b.nii.gz").voxels[0], values("i2"))

    def test_bytes_after_the_last_voxel(self, tmp_path):
        content = save(tmp_path / "a.nii", values("i2")).read_bytes() + b"more" * 1000
        (tmp_path / "a.nii").write_bytes(content)
        (tmp_path / "b.nii.gz").write_bytes(gzip.compress(content))
        for name in ("a.nii", "b.nii.gz"):
            np.testing.assert_array_equal(read_image(tmp_path / name).voxels[0], values("i2"))

    def test_extensions_are_passed_over(self, tmp_path):
        image = nib.Nifti1Image(values("i2"), AFFINE)
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 5000))
        for name in ("a.nii", "a.nii.gz"):
            nib.save(image, tmp_path / name)
            np.testing.assert_array_equal(read_image(tmp_path / name).voxels[0], values("i2"))

    def test_a_copy_made_as_text(self, tmp_path):
        """NIfTI-2's magic ends in CR LF ^Z LF, to tell exactly this."""
        path = save(tmp_path / "a.nii", values("i2"), version=2)
        path.write_bytes(path.read_bytes().replace(b"\r\n\x1a\n", b"\n\x1a\n", 1))
        assert "cannot be read as NIfTI (its magic is" in refusal(path)

    def test_stems(self):
        names = ["a.nii", "a.nii.gz", "a.IMG", "a.img.gz", "a.hdr", "a.hdr.gz", ".a.nii", "a.gz", "a.b.nii.gz"]
        assert [stem(Path(name)) for name in names] == ["a", "a", "a", "a", None, None, None, None, "a.b"]


class TestAxes:
    @pytest.mark.parametrize("name", ["a.nii.gz", "pair.img"])
    def test_the_fourth_axis_is_channels_or_time(self, tmp_path, name):
        voxels = values("i2", (*SHAPE, 5))
        image = read_image(save(tmp_path / name, voxels))
        assert image.voxels.shape == (5, *SHAPE)
        np.testing.assert_array_equal(np.moveaxis(image.voxels, 0, 3), voxels)

    def test_a_vector_per_voxel(self, tmp_path):
        """Axis 5, axis 4 being kept for time (nifti1.h, intent NIFTI_INTENT_VECTOR), as ITK writes it."""
        theirs = sitk.GetImageFromArray(values("f4", (*SHAPE, 3)).transpose(2, 1, 0, 3), isVector=True)
        sitk.WriteImage(theirs, str(tmp_path / "a.nii"))
        assert nib.load(tmp_path / "a.nii").shape == (*SHAPE, 1, 3)
        np.testing.assert_array_equal(np.moveaxis(read_image(tmp_path / "a.nii").voxels, 0, 3), values("f4", (*SHAPE, 3)))

    @pytest.mark.parametrize("number", [0, 8, -1, 1000])
    def test_a_number_of_axes_that_there_is_not(self, tmp_path, number):
        path = save(tmp_path / "a.nii", values("i2"))
        content = bytearray(path.read_bytes())
        content[40:42] = np.int16(number).tobytes()
        path.write_bytes(content)
        assert f"header declares {number} axes" in refusal(path)
