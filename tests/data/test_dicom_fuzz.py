"""DICOM bytes damaged in every way we could think of: each case ends in a volume or in one clear line.

Seeds are fixed, so a failure names the case that shows it again. Every case is bounded in processor time (a machine may be busy),
and all of them together in memory; no case may leave a file behind.
"""

import io
import os
import resource
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")

import dicom_builder as build  # noqa: E402
from jpeg_decoder import encode_blocks  # noqa: E402
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGExtended12Bit, JPEGLSLossless, RLELossless  # noqa: E402

from mri_ds.data.dicom import read_dicom  # noqa: E402
from mri_ds.errors import InputError  # noqa: E402

MAX_SECONDS = 10
NUM_COMPRESSED = 8  # each starts a process
MAX_GROWTH_BYTES = 2**30
Mutation = Callable[[bytearray, np.random.Generator], bytearray]


INTEGERS = ["Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"]
TEXTS = ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "NumberOfFrames",
         "SpacingBetweenSlices", "ImageType", "TransferSyntaxUID"]  # fmt: skip
SYNTAXES = ["1.2.840.10008.1.2." + end for end in ("5", "4.50", "4.70", "4.80", "4.90")]
VRS = (b"DS", b"UI", b"LO", b"SQ", b"OW", b"CS", b"US", b"OB")


def flip_bits(content: bytearray, rng: np.random.Generator) -> bytearray:
    for at in rng.integers(len(content), size=rng.integers(1, 30)):
        content[at] ^= 1 << int(rng.integers(8))
    return content


def flip_header(content: bytearray, rng: np.random.Generator) -> bytearray:
    """Damage where the elements are, not in the preamble or the voxels."""
    for at in rng.integers(132, min(len(content), 1500), size=rng.integers(1, 12)):
        content[at] = int(rng.integers(256))
    return content


def truncate(content: bytearray, rng: np.random.Generator) -> bytearray:
    return content[: int(rng.integers(len(content)))]


def repeat(content: bytearray, rng: np.random.Generator) -> bytearray:
    """A stretch twice, or a stretch left out: everything behind it moves."""
    start, length = int(rng.integers(132, len(content))), int(rng.integers(1, 200))
    piece = content[start : start + length]
    return content[:start] + (piece * 2 if rng.random() < 0.5 else b"") + content[start + length :]


def lengths(content: bytearray, rng: np.random.Generator) -> bytearray:
    """A length field (2 or 4 bytes behind a VR) becomes huge, undefined, odd or zero."""
    marks = [
        at
        for at in range(132, len(content) - 8)
        if content[at : at + 2] in (b"DS", b"UI", b"LO", b"SQ", b"OW", b"CS", b"US", b"OB")
    ]
    for at in rng.choice(marks, size=3):
        if content[at : at + 2] in (b"SQ", b"OW", b"OB"):
            content[at + 4 : at + 8] = struct.pack("<I", int(rng.choice([0, 1, 2**31, 2**32 - 2, 2**32 - 1, 12345])))
        else:
            content[at + 2 : at + 4] = struct.pack("<H", int(rng.choice([0, 1, 7, 65534, 65535])))
    return content


def numbers(content: bytearray, rng: np.random.Generator) -> bytearray:
    """Rows, columns, bits, frames, positions: extreme values of the right kind."""
    ds = pydicom.dcmread(io.BytesIO(content), force=True)
    for _ in range(int(rng.integers(1, 4))):
        keyword = str(
            rng.choice(["Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"])
        )
        if rng.random() < 0.6:
            setattr(ds, keyword, int(rng.choice([0, 1, 3, 7, 8, 12, 16, 32, 64, 65535])))
            continue
        keyword = str(rng.choice(TEXTS))
        if keyword == "TransferSyntaxUID":
            ds.file_meta.TransferSyntaxUID = str(rng.choice(SYNTAXES))  # whose decoder finds plain voxels
            ds.PixelData, ds["PixelData"].VR = pydicom.encaps.encapsulate([ds.PixelData]), "OB"
        elif keyword in ds:
            value = str(rng.choice(["0", "-1", "1e38", "1e-38", "1e400", "nan", "inf", "", "x", "999999999", "MOSAIC"]))
            count = len(ds[keyword].value) if isinstance(ds[keyword].value, pydicom.multival.MultiValue) else 1
            ds[keyword] = pydicom.dataelem.RawDataElement(
                ds[keyword].tag, ds[keyword].VR, 0, "\\".join([value] * count).encode(), 0, False, True
            )
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=False)
    return bytearray(out.getvalue())


def nest(content: bytearray, rng: np.random.Generator) -> bytearray:
    """Sequences in sequences, deeper than any parser's stack, before everything else of group 8."""
    depth = int(rng.integers(10, 3000))
    at = content.index(b"\x08\x00\x08\x00CS")
    opening = (
        struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    ) * depth
    return content[:at] + opening + content[at:]


MUTATIONS: dict[str, Mutation] = {
    mutate.__name__: mutate for mutate in (flip_bits, flip_header, truncate, repeat, lengths, numbers, nest)
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, Path]:
    """One folder for each kind of object: the first file of each is damaged."""
    root, values = tmp_path_factory.mktemp("originals"), build.voxels((12, 10, 3))
    folders = {
        "classic": build.save(build.series(values), root / "classic"),
        "enhanced": build.save([build.enhanced(values)], root / "enhanced"),
        "mosaic": build.save([build.mosaic(values)], root / "mosaic"),
    }
    deflated, lossy = build.series(values), build.series(np.kron(build.voxels((4, 3, 3)), np.ones((8, 8, 1), np.uint16)))
    for ds in deflated:
        ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    folders["deflated"] = build.save(deflated, root / "deflated")
    for ds in lossy:
        ds.BitsStored, ds.HighBit = 12, 11
        ds.PixelData = pydicom.encaps.encapsulate([encode_blocks(ds.pixel_array, 12)])
        ds["PixelData"].VR, ds.file_meta.TransferSyntaxUID = "OB", JPEGExtended12Bit
    folders[JPEGExtended12Bit.keyword] = build.save(lossy, root / "lossy")
    for syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless):
        large = build.voxels((64, 48, 3))  # the encoder of JPEG 2000 refuses less
        folders[syntax.keyword] = build.save(build.series(large), root / syntax.keyword)
        for file in folders[syntax.keyword].iterdir():
            ds = pydicom.dcmread(file)
            ds.compress(syntax, generate_instance_uid=False)
            ds.save_as(file)
    return folders


def outcome(path: Path) -> str:
    """ "read", or the refusal's line; anything else fails the test."""
    begin = cpu_seconds()
    try:
        volume, _ = read_dicom(path)
        assert np.isfinite(volume.voxels).all() and np.isfinite(volume.affine).all() and volume.voxels.ndim == 4
        result = "read"
    except InputError as err:
        result = str(err)
        assert result.startswith(str(path)) and "\n" not in result and len(result) < 600, result
    assert cpu_seconds() - begin < MAX_SECONDS
    return result


def cpu_seconds() -> float:
    """Of this process and of those it has waited for."""
    return sum(os.times()[:4])


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize(("kind", "cases"), [("classic", 40), ("enhanced", 40), ("mosaic", 40)])
def test_damaged_elements(originals, tmp_path, kind, cases, mutation):
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    good = {file.name: file.read_bytes() for file in originals[kind].iterdir()}
    folder, outcomes = tmp_path / "in", []
    folder.mkdir()
    for seed in range(cases):
        for index, (name, content) in enumerate(sorted(good.items())):
            damaged = MUTATIONS[mutation](bytearray(content), np.random.default_rng(seed)) if index == 0 else content
            (folder / name).write_bytes(damaged)
        outcomes.append(outcome(folder))
    assert any(one != "read" for one in outcomes), "no case of this damage is noticed"
    assert {file.name for file in folder.iterdir()} == set(good) and set(tmp_path.iterdir()) == {folder}
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024 < MAX_GROWTH_BYTES


@pytest.mark.parametrize("kind", ["RLELossless", "JPEGLSLossless", "JPEG2000Lossless", "JPEGExtended12Bit"])
def test_damaged_compressed_pixels(originals, tmp_path, kind):
    """The decoders run in a process of their own: even a crash in one would be a refusal here."""
    good = {file.name: file.read_bytes() for file in originals[kind].iterdir()}
    folder, outcomes = tmp_path / "in", []
    folder.mkdir()
    for seed in range(NUM_COMPRESSED):
        rng = np.random.default_rng(seed)
        for index, (name, content) in enumerate(sorted(good.items())):
            damaged = bytearray(content)
            if index == 0:
                start = damaged.rindex(b"\xe0\x7f\x10\x00")  # PixelData
                for at in rng.integers(start + 12, len(damaged), size=rng.integers(1, 20)):
                    damaged[at] = int(rng.integers(256))
            (folder / name).write_bytes(damaged)
        outcomes.append(outcome(folder))
    assert any("damaged" in one for one in outcomes)


@pytest.mark.parametrize("mutate", [flip_bits, truncate, repeat])
def test_damaged_deflated_files(originals, tmp_path, mutate):
    """Damage to the stream itself, and to what is in it before it is packed again."""
    good = {file.name: file.read_bytes() for file in originals["deflated"].iterdir()}
    folder, outcomes = tmp_path / "in", []
    folder.mkdir()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        for index, (name, content) in enumerate(sorted(good.items())):
            if index == 0:
                end = 144 + int.from_bytes(content[140:144], "little")
                inside = bytearray(zlib.decompress(content[end:], -zlib.MAX_WBITS))
                if seed % 2:
                    engine = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
                    content = content[:end] + engine.compress(mutate(inside, rng)) + engine.flush()
                else:
                    content = content[:132] + mutate(bytearray(content), rng)[132:]
            (folder / name).write_bytes(content)
        outcomes.append(outcome(folder))
    assert sum(one != "read" for one in outcomes) > 10
    assert {file.name for file in folder.iterdir()} == set(good)


def test_damaged_zips(originals, tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in originals["classic"].iterdir():
            archive.write(file, file.name)
    good, outcomes = path.read_bytes(), []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        mutate = (flip_bits, truncate, repeat)[seed % 3]
        path.write_bytes(mutate(bytearray(good), rng))
        outcomes.append(outcome(path))
    assert sum(one != "read" for one in outcomes) > 50
    assert list(tmp_path.iterdir()) == [path]
