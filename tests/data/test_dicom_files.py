"""Where DICOM comes from: files, folders and zips, and what a hostile or damaged one may not do."""

import io
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")

import dicom_builder as build  # noqa: E402

from mri_ds.data.dicom import read_dicom  # noqa: E402
from mri_ds.data.dicom.files import open_sources  # noqa: E402
from mri_ds.errors import InputError  # noqa: E402

VALUES = build.voxels()


@pytest.fixture
def folder(tmp_path) -> Path:
    return build.save(build.series(VALUES), tmp_path / "series")


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_dicom(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and "\n" not in text and "Fix: " in text
    return text


def packed(folder: Path, path: Path, method: int = zipfile.ZIP_DEFLATED, prefix: str = "a/b/") -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, prefix + file.name)
    return path


class TestSources:
    def test_a_file_of_many_frames(self, tmp_path):
        folder = build.save([build.enhanced(VALUES)], tmp_path / "in")
        np.testing.assert_array_equal(read_dicom(next(folder.iterdir()))[0].voxels[0], VALUES * 2.0 - 8)

    def test_a_folder_with_subfolders_and_other_files(self, folder):
        (folder / "README.txt").write_text("no image")
        (folder / ".hidden.dcm").write_bytes(b"no image")
        (folder / "deep").mkdir()
        for k, file in enumerate(sorted(folder.glob("*.dcm"))[:3]):
            file.rename(folder / "deep" / f"{k}")  # named as PACS name them: no suffix
        np.testing.assert_array_equal(read_dicom(folder)[0].voxels[0], VALUES)

    @pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    def test_a_zip(self, folder, tmp_path, method):
        before = set(tmp_path.rglob("*"))
        path = packed(folder, tmp_path / "study.zip", method)
        np.testing.assert_array_equal(read_dicom(path)[0].voxels[0], VALUES)
        assert set(tmp_path.rglob("*")) == before | {path}  # nothing is unpacked

    def test_files_without_preamble(self, folder, tmp_path):
        """As before 1993: elements from the first byte on."""
        bare = tmp_path / "bare"
        bare.mkdir()
        for file in folder.iterdir():
            ds = pydicom.dcmread(file)
            with (bare / file.name).open("wb") as out:
                pydicom.filewriter.write_dataset(_implicit(out), ds)
        np.testing.assert_array_equal(read_dicom(bare)[0].voxels[0], VALUES)

    def test_a_link_to_a_folder_is_not_followed(self, folder, tmp_path):
        (folder / "again").symlink_to(folder)
        np.testing.assert_array_equal(read_dicom(folder)[0].voxels[0], VALUES)


class TestRefusals:
    def test_what_is_not_there_or_no_dicom(self, tmp_path):
        assert "no such file or folder" in refusal(tmp_path / "absent")
        assert "holds no DICOM image" in refusal(_made(tmp_path / "empty"))
        (tmp_path / "a.txt").write_text("x" * 500)
        assert "holds no DICOM image" in refusal(tmp_path / "a.txt")
        (tmp_path / "a.dcm").write_text("x" * 500)
        assert "the file is not DICOM" in refusal(tmp_path / "a.dcm")
        (tmp_path / "empty.dcm").touch()
        assert "the file is not DICOM" in refusal(tmp_path / "empty.dcm")

    def test_a_slice_that_is_no_longer_dicom(self, folder):
        """Left out in silence, the first or last slice would be missed by nobody."""
        file = sorted(folder.iterdir())[1]
        file.write_bytes(b"\0" * 1000)
        assert "file 2 of 5 is not DICOM" in refusal(folder)

    def test_a_slice_without_pixels(self, folder):
        file = sorted(folder.iterdir())[1]
        ds = pydicom.dcmread(file)
        del ds.PixelData
        ds.save_as(file)
        assert "file 2 of 5 is damaged (pixel data" in refusal(folder)

    def test_truncated_anywhere(self, folder):
        file = sorted(folder.iterdir())[0]
        content = file.read_bytes()
        for length in [*range(0, len(content) - 1, 37), len(content) - 1]:
            file.write_bytes(content[:length])
            refusal(folder)

    def test_without_pydicom(self, folder, monkeypatch):
        monkeypatch.setitem(sys.modules, "pydicom", None)
        with pytest.raises(InputError, match=r"reading DICOM needs pydicom.*pip install 'mri_ds\[dicom\]'"):
            read_dicom(folder)

    def test_without_dcm2niix(self, folder, monkeypatch):
        monkeypatch.setattr("mri_ds.data.dicom.pixels.can_decode", lambda syntax: False)
        monkeypatch.setitem(sys.modules, "dcm2niix", None)
        with pytest.raises(InputError, match=r"is of transfer syntax 1.2.840.10008.1.2.1, which needs dcm2niix"):
            read_dicom(folder)


class TestHostileZips:
    @pytest.mark.parametrize("name", ["../evil.dcm", "/evil.dcm", "a/../../evil.dcm", "..\\evil.dcm", "C:\\evil.dcm"])
    def test_names_that_point_outside(self, folder, tmp_path, name):
        path = packed(folder, tmp_path / "a.zip")
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, b"x")
        assert "holds a name that points outside it" in refusal(path)
        assert not list(tmp_path.rglob("evil*")) and not Path("/evil.dcm").exists()

    def test_a_bomb(self, tmp_path):
        """100 MB of zeros in 100 kB: refused by its table of contents, before a byte is unpacked."""
        path = tmp_path / "a.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for number in range(10):
                archive.writestr(f"{number}.dcm", bytes(10_000_000))
        assert "would unpack from" in refusal(path) and path.stat().st_size < 200_000

    def test_a_bomb_that_lies_about_its_size(self, tmp_path):
        """The table of contents says 1000 bytes: no more than that is ever unpacked."""
        path = tmp_path / "a.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.dcm", bytes(50_000_000))
        content = bytearray(path.read_bytes())
        for mark, at in ((b"PK\1\2", 24), (b"PK\3\4", 22)):
            start = content.rindex(mark) if mark == b"PK\1\2" else content.index(mark)
            content[start + at : start + at + 4] = struct.pack("<I", 1000)
        path.write_bytes(content)
        assert "file 1 of 1 in it is damaged" in refusal(path) or "is not DICOM" in refusal(path)

    def test_encrypted(self, folder, tmp_path):
        path = packed(folder, tmp_path / "a.zip")
        content = bytearray(path.read_bytes())
        at = content.index(b"PK\1\2")
        content[at + 8] |= 1  # the flag in the table of contents
        path.write_bytes(content)
        assert "is encrypted" in refusal(path)

    @pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_unusual_methods(self, folder, tmp_path, method):
        assert "packed by an unusual method" in refusal(packed(folder, tmp_path / "a.zip", method))

    def test_not_a_zip(self, tmp_path):
        for content in (b"", b"PK\3\4" + b"x" * 100, b"no zip"):
            (tmp_path / "a.zip").write_bytes(content)
            assert "cannot be read as a zip" in refusal(tmp_path / "a.zip")

    def test_damaged_members(self, folder, tmp_path):
        path = packed(folder, tmp_path / "a.zip")
        content = bytearray(path.read_bytes())
        content[200:260] = bytes(60)
        path.write_bytes(content)
        assert "file 1 of 5 in it is damaged" in refusal(path)


def test_a_damaged_length_allocates_nothing(folder):
    """An element that claims 4 GB is cut at the end of the file, by asking the file for no more than it has."""
    file = sorted(folder.iterdir())[0]
    asked: list[int] = []
    with open_sources(file) as sources:
        stream = sources[0].open()
        read = stream._file.read  # type: ignore[attr-defined]
        stream._file = _Counting(stream._file, read, asked)  # type: ignore[attr-defined]
        stream.seek(file.stat().st_size - 10)
        assert len(stream.read(2**32)) == 10
        stream.seek(file.stat().st_size + 10)
        assert stream.read(2**32) == b""
        stream.close()
    assert max(asked) <= 10


def test_a_source_never_tells_its_name(tmp_path):
    folder = build.save(build.series(VALUES), tmp_path / "in")
    first = sorted(folder.iterdir())[0]
    first.rename(folder / "A_DOE_JANE.dcm").write_bytes(b"x")
    text = refusal(folder)
    assert "DOE" not in text and "file 1 of 5" in text


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _implicit(out: io.BufferedWriter) -> object:
    from pydicom.filebase import DicomIO

    stream = DicomIO(out)
    stream.is_implicit_VR, stream.is_little_endian = True, True
    return stream


class _Counting:
    def __init__(self, file: object, read: object, asked: list[int]) -> None:
        self.tell, self._read, self._asked = file.tell, read, asked  # type: ignore[attr-defined]

    def read(self, size: int) -> bytes:
        self._asked.append(size)
        return self._read(size)  # type: ignore[operator]
