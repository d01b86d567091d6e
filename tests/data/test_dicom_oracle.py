"""DICOM against dcm2niix: the same voxels at the same places in the world.

dcm2niix flips the rows of every slice (and says so in its affine) and may order slices the other way, so both are brought to
canonical orientation, where equal volumes are equal arrays. Its affines are float32: they agree to 1e-4.
"""

import os
import resource
import shutil
import subprocess
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
dcm2niix = pytest.importorskip("dcm2niix", reason="needs the extra dicom")

import dicom_builder as build  # noqa: E402
from jpeg_decoder import decode_jpeg, encode_blocks  # noqa: E402
from pydicom.data import get_testdata_file  # noqa: E402
from pydicom.uid import (  # noqa: E402
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from mri_ds.data.dicom import list_series, read_dicom  # noqa: E402
from mri_ds.data.dicom.files import open_sources  # noqa: E402
from mri_ds.data.dicom.geometry import Stack  # noqa: E402
from mri_ds.data.dicom.headers import read_frames  # noqa: E402
from mri_ds.data.dicom.pixels import read_voxels  # noqa: E402
from mri_ds.errors import InputError  # noqa: E402

REAL = Path(os.environ.get("MRI_DS_REAL_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")) / "dicom_study"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"no real DICOM in {REAL}: set MRI_DS_REAL_DATA")
REAL_SERIES = ["11-T1post-18670", "11_HCropVolume", "26401-T1prereg-52906", "36468-FLAIRreg-58706", "37830-T2reg-78532"]
PYDICOM_IMAGES = [  # single slices, which dcm2niix converts
    "CT_small.dcm", "693_J2KI.dcm", "JPEG2000.dcm", "JPEGLSNearLossless_08.dcm", "JPEGLSNearLossless_16.dcm", "MR_small.dcm",
    "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_expb.dcm", "MR_small_implicit.dcm", "MR_small_jp2klossless.dcm",
    "MR_small_jpeg_ls_lossless.dcm", "MR_small_padded.dcm", "examples_overlay.dcm",
]  # fmt: skip


def converted(path: Path, out: Path, *options: str) -> list[nib.Nifti1Image]:
    """What dcm2niix makes of a file or folder."""
    out.mkdir()
    command = [dcm2niix.bin, *options, "-b", "n", "-z", "n", "-f", "v", "-o", str(out), str(path)]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True, timeout=60)
    return [nib.load(file) for file in sorted(out.glob("*.nii"))]


def canonical(voxels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(D, H, W) and its affine, both turned to RAS+."""
    orientation = nib.orientations.io_orientation(affine)
    turned = nib.orientations.apply_orientation(voxels, orientation)
    return turned, affine @ nib.orientations.inv_ornt_aff(orientation, voxels.shape)


def assert_same_volume(path: Path, out: Path) -> None:
    [theirs] = converted(path, out)
    ours, _ = read_dicom(path)
    stored = np.asarray(theirs.dataobj, dtype=np.float32)
    stored = stored[..., None] if stored.ndim == 3 else stored
    assert stored.shape[3] == len(ours.voxels)
    for t, voxels in enumerate(ours.voxels):
        wanted, wanted_affine = canonical(stored[..., t], theirs.affine)
        got, got_affine = canonical(voxels, ours.affine)
        np.testing.assert_array_equal(got, wanted)
        np.testing.assert_allclose(got_affine, wanted_affine, atol=1e-4)


# ---- real scans ------------------------------------------------------------------------------------------------------


@needs_real
@pytest.mark.parametrize("name", REAL_SERIES)
def test_real_series(tmp_path, name):
    assert_same_volume(REAL / name, tmp_path / "out")


@needs_real
def test_a_real_study_as_channels():
    keys = [one.key for one in list_series(REAL)]
    assert keys == ["#1", "11", "26401", "36468", "37870"]  # one of the five has no number
    volume, tags = read_dicom(REAL, series=[36468, 11])
    assert volume.voxels.shape == (2, 280, 320, 22)
    for channel, name in enumerate(["36468-FLAIRreg-58706", "11-T1post-18670"]):
        alone, _ = read_dicom(REAL / name)
        np.testing.assert_array_equal(volume.voxels[channel], alone.voxels[0])
    assert [one["echo_time_ms"] for one in tags] == [90, 9.5] and tags[0]["inversion_time_ms"] == 2600
    with pytest.raises(InputError, match="series 11 and #1 are 280 x 320 x 22 and 34 x 50 x 40 voxels"):
        read_dicom(REAL, series=["#1", 11])
    with pytest.raises(InputError, match=r"holds 5 series: #1 .*, 11 \(22 of 280 x 320, TR 500, TE 9.5\), "):
        read_dicom(REAL)


@pytest.mark.parametrize("name", PYDICOM_IMAGES)
def test_pixels_of_pydicoms_files(tmp_path, name):
    """No single slice is a volume, so its pixels are compared below the level that refuses it."""
    path = Path(get_testdata_file(name, download=False))
    theirs = converted(path, tmp_path / "out", "-s", "y")[0]
    with open_sources(path) as sources:
        voxels = read_voxels(Stack([read_frames(sources[0])], np.eye(4)), path)
    np.testing.assert_array_equal(voxels[0], np.asarray(theirs.dataobj, dtype=np.float32).reshape(voxels[0].shape)[:, ::-1])


def test_where_the_header_and_the_jpeg_2000_stream_disagree_on_the_sign(tmp_path):
    """The stream says unsigned, the header signed: pydicom follows the header, as a CT needs; dcm2niix is 2^13 off."""
    path = Path(get_testdata_file("J2K_pixelrep_mismatch.dcm", download=False))
    theirs = np.asarray(converted(path, tmp_path / "out", "-s", "y")[0].dataobj, dtype=np.float32)
    with open_sources(path) as sources:
        voxels = read_voxels(Stack([read_frames(sources[0])], np.eye(4)), path)
    assert set(np.unique(theirs.reshape(voxels[0].shape)[:, ::-1] - voxels[0])) == {0, 2**13}
    np.testing.assert_array_equal(voxels[0, :, :, 0].T, pydicom.dcmread(path).pixel_array)


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("98892001/CT5N", None),
        ("77654033/CT2", "missing slices: 161 between 4"),
        ("98892001/CT2N", "is a localiser"),
        ("98892003/MR700", "mixed orientations"),
        ("77654033/CR1", "has no position in space"),
    ],
)
def test_pydicoms_series(tmp_path, folder, reason):
    path = Path(pydicom.__file__).parent / "data" / "test_files" / "dicomdirtests" / folder
    copy = Path(shutil.copytree(path, tmp_path / "in"))
    if reason is None:
        assert_same_volume(copy, tmp_path / "out")
    else:
        with pytest.raises(InputError, match=reason):
            read_dicom(copy)


# ---- every kind of object --------------------------------------------------------------------------------------------


def test_classic(tmp_path):
    values = build.voxels()
    folder = build.save(build.series(values), tmp_path / "in")
    assert_same_volume(folder, tmp_path / "out")
    volume, _ = read_dicom(folder)
    np.testing.assert_array_equal(volume.voxels[0], values)
    np.testing.assert_allclose(volume.affine, build.expected_affine(), atol=1e-6)
    np.testing.assert_allclose(volume.spacing_mm, [1.25, 1.5, 3.0], atol=1e-6)


@pytest.mark.parametrize(
    "orientation", [(1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), (1, 0, 0, 0, 0, -1), (-1, 0, 0, 0, -1, 0), (0, -1, 0, 1, 0, 0)]
)
def test_orientations(tmp_path, orientation):
    """Axial, sagittal, coronal, prone, turned in the plane."""
    values = build.voxels()
    folder = build.save(build.series(values, orientation=orientation), tmp_path / "in")
    assert_same_volume(folder, tmp_path / "out")
    np.testing.assert_allclose(read_dicom(folder)[0].affine, build.expected_affine(orientation=orientation), atol=1e-6)


def test_time_points(tmp_path):
    values = build.voxels((12, 10, 5, 3))
    folder = build.save(build.series(values), tmp_path / "in")
    assert_same_volume(folder, tmp_path / "out")
    np.testing.assert_array_equal(read_dicom(folder)[0].voxels, np.moveaxis(values, 3, 0))


@pytest.mark.parametrize("shuffle", [None, 1, 2])
@pytest.mark.parametrize("shape", [(12, 10, 5), (12, 10, 5, 3)])
def test_enhanced_multi_frame(tmp_path, shape, shuffle):
    values = build.voxels(shape)
    folder = build.save([build.enhanced(values, shuffle=shuffle)], tmp_path / "in")
    assert_same_volume(folder, tmp_path / "out")
    volume, _ = read_dicom(folder)
    np.testing.assert_array_equal(volume.voxels, 2.0 * np.moveaxis(values.reshape(12, 10, 5, -1), 3, 0) - 8)
    np.testing.assert_allclose(volume.affine, build.expected_affine(), atol=1e-6)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("count", [4, 7])
def test_siemens_mosaic(tmp_path, count, reverse):
    values = build.voxels((16, 12, count))
    folder = build.save([build.mosaic(values, reverse=reverse)], tmp_path / "in")
    assert_same_volume(folder, tmp_path / "out")
    volume, _ = read_dicom(folder)
    np.testing.assert_array_equal(volume.voxels[0], values[:, :, ::-1] if reverse else values)


def test_mosaics_over_time(tmp_path):
    values = build.voxels((16, 12, 7, 3))
    made = [build.mosaic(values[..., t]) for t in range(3)]
    for t, ds in enumerate(made):
        ds.SeriesInstanceUID, ds.InstanceNumber, ds.AcquisitionNumber = made[0].SeriesInstanceUID, t + 1, t + 1
    folder = build.save(made, tmp_path / "in")
    assert_same_volume(folder, tmp_path / "out")
    np.testing.assert_array_equal(read_dicom(folder)[0].voxels, np.moveaxis(values, 3, 0))


# ---- every encoding --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "highest"), [(np.uint8, 255), (np.int16, 3000), (np.uint16, 60000)])
@pytest.mark.parametrize("scale", [("1", "0"), ("0.5", "-100"), ("1.25", "3")])
def test_types_and_rescale(tmp_path, dtype, highest, scale):
    values = build.voxels(highest=highest).astype(dtype)
    made = build.series(values)
    for ds in made:
        ds.RescaleSlope, ds.RescaleIntercept = scale
    folder = build.save(made, tmp_path / "in")
    assert_same_volume(folder, tmp_path / "out")
    np.testing.assert_array_equal(read_dicom(folder)[0].voxels[0], values * float(scale[0]) + float(scale[1]))


def test_a_slope_per_slice(tmp_path):
    values = build.voxels()
    made = build.series(values)
    for k, ds in enumerate(made):
        ds.RescaleSlope, ds.RescaleIntercept = str(1 + k / 4), "0"
    folder = build.save(made, tmp_path / "in")
    np.testing.assert_array_equal(read_dicom(folder)[0].voxels[0], values * (1 + np.arange(5) / 4))


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_uncompressed(tmp_path, syntax, dtype):
    made = build.series(build.voxels(highest=200).astype(dtype))
    for ds in made:
        ds.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian and dtype is np.int16:
            ds.PixelData = np.frombuffer(ds.PixelData, "<i2").astype(">i2").tobytes()
    folder = tmp_path / "in"
    folder.mkdir()
    for k, ds in enumerate(made):
        encoding = {"implicit_vr": syntax == ImplicitVRLittleEndian, "little_endian": syntax != ExplicitVRBigEndian}
        pydicom.dcmwrite(folder / f"{k}.dcm", ds, **encoding, force_encoding=True)
    assert_same_volume(folder, tmp_path / "out")
    np.testing.assert_array_equal(read_dicom(folder)[0].voxels[0], build.voxels(highest=200))


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless, JPEGLosslessSV1], ids=lambda uid: uid.keyword)
@pytest.mark.parametrize("enhanced", [False, True])
def test_compressed(tmp_path, syntax, enhanced):
    """(dcm2niix leaves compressed frames in the order of the file.)"""
    values = build.voxels((64, 48, 5))
    made = [build.enhanced(values, shuffle=None)] if enhanced else build.series(values)
    folder = build.save(made, tmp_path / "in")
    for file in folder.glob("*.dcm"):
        compress(file, syntax)
    assert_same_volume(folder, tmp_path / "out")
    np.testing.assert_array_equal(read_dicom(folder)[0].voxels[0], values * 2.0 - 8 if enhanced else values)


def compress(file: Path, syntax: pydicom.uid.UID) -> None:
    if syntax != JPEGLosslessSV1:  # pydicom has no encoder for that one
        ds = pydicom.dcmread(file)
        ds.compress(syntax, generate_instance_uid=False)
        ds.save_as(file)
        return
    gdcm = pytest.importorskip("gdcm")
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(file))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(file))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


def test_lossy_jpeg_of_twelve_bits():
    """dcm2niix cannot read it, so a decoder of our own tells what is right: to one step, as the standard lets decoders round."""
    path = Path(get_testdata_file("JPGExtended.dcm", download=False))
    wanted = decode_jpeg(next(pydicom.encaps.generate_frames(pydicom.dcmread(path).PixelData, number_of_frames=1)))
    with open_sources(path) as sources:
        voxels = read_voxels(Stack([read_frames(sources[0])], np.eye(4)), path)[0, :, :, 0].T
    assert wanted.max() > 255 and np.abs(voxels - wanted).max() < 1 and (voxels != np.rint(wanted)).mean() < 0.01


@pytest.mark.parametrize("enhanced", [False, True])
@pytest.mark.parametrize(("precision", "dtype"), [(8, np.uint8), (8, np.uint16), (12, np.uint16), (12, np.int16)])
def test_series_of_lossy_jpeg(tmp_path, precision, dtype, enhanced):
    """Of pictures that JPEG keeps exactly; of signed numbers the twelfth bit is the sign."""
    blocks = build.voxels((4, 3, 5), highest=2**precision)
    values = np.kron(blocks, np.ones((8, 8, 1), np.uint16))
    made = [build.enhanced(values, shuffle=None)] if enhanced else build.series(values)
    for ds in made:
        frames = ds.pixel_array.reshape(-1, ds.Rows, ds.Columns)
        bits = 8 * np.dtype(dtype).itemsize
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = bits, precision, precision - 1
        ds.PixelRepresentation = int(np.dtype(dtype).kind == "i")
        ds.PixelData = pydicom.encaps.encapsulate([encode_blocks(frame, precision) for frame in frames])
        ds["PixelData"].VR, ds.file_meta.TransferSyntaxUID = "OB", "1.2.840.10008.1.2.4.51"
    wanted = values.astype(float)
    if dtype is np.int16:
        wanted[wanted >= 2**11] -= 2**12
    volume, _ = read_dicom(build.save(made, tmp_path / "in"))
    np.testing.assert_array_equal(volume.voxels[0], wanted * 2 - 8 if enhanced else wanted)


@pytest.mark.parametrize("damage", ["size", "bits", "cut", "no frame"])
def test_lossy_jpeg_that_is_not_what_its_header_says(tmp_path, damage):
    made = build.series(np.kron(build.voxels((4, 3, 5)), np.ones((8, 8, 1), np.uint16)))
    for k, ds in enumerate(made):
        stream = encode_blocks(ds.pixel_array, 12)
        if k == 2:
            stream = {
                "size": encode_blocks(ds.pixel_array[:16], 12),
                "bits": stream.replace(b"\x0c\0\x18\0\x20", b"\x10\0\x18\0\x20"),
                "cut": stream[:80],
                "no frame": stream.replace(b"\xff\xc1", b"\xff\xfe"),
            }[damage]
        ds.BitsStored, ds.HighBit, ds.PixelData = 12, 11, pydicom.encaps.encapsulate([stream])
        ds["PixelData"].VR, ds.file_meta.TransferSyntaxUID = "OB", "1.2.840.10008.1.2.4.51"
    with pytest.raises(InputError, match="compressed pixel data are truncated or damaged"):
        read_dicom(build.save(made, tmp_path / "in"))


# ---- deflated files --------------------------------------------------------------------------------------------------


def deflated(values: np.ndarray, folder: Path) -> Path:
    made = build.series(values)
    for ds in made:
        ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    return build.save(made, folder)


def test_deflated(tmp_path):
    values = build.voxels((64, 48, 5), highest=20)
    folder = deflated(values, tmp_path / "in")
    assert sum(file.stat().st_size for file in folder.iterdir()) < values.nbytes, "a file is smaller than its voxels"
    volume, tags = read_dicom(folder)
    np.testing.assert_array_equal(volume.voxels[0], values)
    np.testing.assert_allclose(volume.affine, build.expected_affine(), atol=1e-6)
    assert tags[0]["echo_time_ms"] == 30


def test_pydicoms_deflated_file():
    """A secondary capture, and no volume."""
    path = Path(get_testdata_file("image_dfl.dcm", download=False))
    with open_sources(path) as sources:
        voxels = read_voxels(Stack([read_frames(sources[0])], np.eye(4)), path)
    np.testing.assert_array_equal(voxels[0, :, :, 0].T, pydicom.dcmread(path).pixel_array)


def test_a_deflated_bomb(tmp_path):
    """A hundred megabytes of zeros in a hundred kilobytes: given up once the bound is passed."""
    folder = deflated(build.voxels(), tmp_path / "in")
    file = sorted(folder.iterdir())[1]
    content = file.read_bytes()
    meta_end = 128 + 4 + 12 + int.from_bytes(content[140:144], "little")
    engine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    plain = zlib.decompress(content[meta_end:], -zlib.MAX_WBITS)
    packed = engine.compress(plain[:-8]) + engine.compress(bytes(100_000_000)) + engine.flush()
    file.write_bytes(content[:meta_end] + packed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"file 2 of 5 would unpack from \d+ to over \d+ bytes"):
        read_dicom(folder)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 70e6


def test_a_deflated_file_cut_anywhere(tmp_path):
    folder = deflated(build.voxels(), tmp_path / "in")
    file = sorted(folder.iterdir())[1]
    content = file.read_bytes()
    for length in [*range(140, len(content) - 2, 29)]:
        file.write_bytes(content[:length])
        with pytest.raises(InputError, match="file 2 of 5 is damaged"):
            read_dicom(folder)


# ---- what dcm2niix reads for us --------------------------------------------------------------------------------------


def test_without_a_decoder_dcm2niix_converts(tmp_path, monkeypatch):
    values = build.voxels((24, 20, 5))
    folder = build.save(build.series(values), tmp_path / "in")
    ours, _ = read_dicom(folder)
    for file in folder.glob("*.dcm"):
        compress(file, JPEGLSLossless)
    monkeypatch.setattr("mri_ds.data.dicom.pixels.can_decode", lambda syntax: False)
    theirs, tags = read_dicom(folder)
    got, got_affine = canonical(theirs.voxels[0], theirs.affine)
    wanted, wanted_affine = canonical(ours.voxels[0], ours.affine)
    np.testing.assert_array_equal(got, wanted)
    np.testing.assert_allclose(got_affine, wanted_affine, atol=1e-4)
    assert tags[0]["echo_time_ms"] == 30


def test_what_neither_reads(tmp_path):
    path = Path(shutil.copy(get_testdata_file("JPGExtended.dcm", download=False), tmp_path / "a.dcm"))
    with pytest.raises(InputError, match="has no position in space"):
        read_dicom(path)
    made = build.series(build.voxels((24, 20, 5)))
    for ds in made:
        ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.102"  # MPEG-4
        ds.PixelData = pydicom.encaps.encapsulate([ds.PixelData])
        ds["PixelData"].VR = "OB"
    folder = build.save(made, tmp_path / "in")
    with pytest.raises(InputError, match=r"is of transfer syntax 1.2.840.10008.1.2.4.102, of which dcm2niix makes 0 volumes"):
        read_dicom(folder)
    assert not list(Path(os.environ.get("TMPDIR", "/tmp")).glob("mri_ds_dicom_*"))
