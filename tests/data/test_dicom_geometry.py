"""What is a volume and what is not: order by geometry, and one reason for each kind of series that is refused."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")

import dicom_builder as build  # noqa: E402
from pydicom.dataset import FileDataset  # noqa: E402
from pydicom.uid import generate_uid  # noqa: E402

from mri_ds.data.dicom import list_series, read_dicom  # noqa: E402
from mri_ds.errors import InputError  # noqa: E402

VALUES = build.voxels()
Change = Callable[[list[FileDataset]], object]


def each(keyword: str, value: object) -> Change:
    """Sets an element in every file (None: takes it out)."""

    def change(made: list[FileDataset]) -> None:
        for ds in made:
            if value is None:
                delattr(ds, keyword)
            else:
                setattr(ds, keyword, value)

    return change


def tilt(made: list[FileDataset]) -> None:
    """Each slice 0.3 mm further along its rows than the one below: 5.7 degrees at 3 mm."""
    for k, ds in enumerate(made):
        ds.ImagePositionPatient = [p + 0.3 * k * o for p, o in zip(ds.ImagePositionPatient, ds.ImageOrientationPatient[:3])]


def double(made: list[FileDataset], *, new_uid: bool = True, instance: int | None = None) -> None:
    again = copy.deepcopy(made[2])
    if new_uid:
        again.SOPInstanceUID = again.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    again.InstanceNumber = instance or again.InstanceNumber
    made.append(again)


def twice(made: list[FileDataset]) -> None:
    """The whole series sent twice, under new instance UIDs."""
    for ds in list(made):
        again = copy.deepcopy(ds)
        again.SOPInstanceUID = again.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        made.append(again)


def scouts(made: list[FileDataset]) -> None:
    for ds, orientation in zip(made, [(1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), (1, 0, 0, 0, 0, -1)]):
        ds.ImageOrientationPatient = list(orientation)
    del made[3:]


def colour(made: list[FileDataset]) -> None:
    for ds in made:
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
        ds.PixelData = ds.PixelData * 3


def drifting(made: list[FileDataset]) -> None:
    made[2].ImagePositionPatient = [
        p + 1.0 * o for p, o in zip(made[2].ImagePositionPatient, made[2].ImageOrientationPatient[:3])
    ]


def uneven(made: list[FileDataset]) -> None:
    made[2].ImagePositionPatient = build.position(2.3, orientation=build.OBLIQUE, gap_mm=3.0, origin=(-20, -30, 10))


REFUSED = {
    "localiser": (each("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]), "is a localiser. Fix: give the diagnostic series."),
    "three planes": (scouts, "mixed orientations. Fix: give one series at a time"),
    "gantry tilt": (tilt, "gantry tilt: slices are stacked 5.7 degrees off their normal"),
    "missing": (lambda made: made.pop(2), "missing slices: 1 between 4"),
    "doubled file": (lambda made: double(made, new_uid=False), "doubled slices: 2 files are one and the same"),
    "doubled place": (lambda made: double(made), "doubled slices: 1 of 5 places hold another number of slices than 1"),
    "doubled series": (twice, "doubled slices: 2 at each place, with nothing to tell them apart"),
    "single": (lambda made: made.__delitem__(slice(1, None)), "single slice. Fix: give all slices"),
    "colour": (colour, "is in colour (RGB)"),
    "palette": (each("PhotometricInterpretation", "PALETTE COLOR"), "is in colour"),
    "uneven": (uneven, "slices lie unevenly, 2.1 to 3.9 mm apart"),
    "off the line": (drifting, "slices do not lie on one line"),
    "no position": (each("ImagePositionPatient", None), "has no position in space"),
    "no orientation": (each("ImageOrientationPatient", None), "has no orientation in space"),
    "no spacing": (each("PixelSpacing", None), "has no pixel spacing"),
    "skewed": (each("ImageOrientationPatient", [1, 0, 0, 0.6, 0.8, 0]), "rows and columns are not perpendicular"),
    "no directions": (each("ImageOrientationPatient", [0, 0, 0, 0, 1, 0]), "orientation is not two unit vectors"),
    "mixed sizes": (
        lambda made: build.add_pixels(made[1], np.zeros((9, 12), np.uint16)),
        "mixed sizes of slices (12 x 9, 12 x 10)",
    ),
    "mixed spacings": (lambda made: setattr(made[1], "PixelSpacing", [1.5, 1.3]), "mixed pixel spacings"),
    "constant": (each("PixelData", b"\7\0" * 120), "image is constant (every voxel 7)"),
    "infinite": (each("RescaleSlope", "1e300"), "of 600 voxels are NaN or infinite"),
    "bits": (each("BitsAllocated", 64), " of 5 has 64 bits per voxel"),
    "too few bytes": (
        each("PixelData", b"\7\0" * 100),
        " of 5 is damaged (pixel data truncated, or not as the header says)",
    ),
    "too many rows": (each("Rows", 60000), " of 5 declares 1440000 bytes of voxels, more than its "),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_each_refusal_has_its_own_reason(tmp_path, kind):
    change, reason = REFUSED[kind]
    made = build.series(VALUES)
    change(made)
    for number, ds in enumerate(made, start=1):
        ds.InstanceNumber = ds.get("InstanceNumber", number)
    folder = build.save(made, tmp_path / "in")
    with pytest.raises(InputError) as caught:
        read_dicom(folder)
    assert reason in str(caught.value) and str(caught.value).startswith(f"{folder}: ") and "\n" not in str(caught.value)
    assert "Fix: " in str(caught.value)


def test_no_two_kinds_share_a_reason():
    """Of the kinds that the user has to tell apart."""
    kinds = ["localiser", "three planes", "gantry tilt", "missing", "doubled place", "single", "colour", "uneven", "mixed sizes"]
    reasons = [REFUSED[kind][1].split(":")[0].split(".")[0] for kind in kinds]
    assert len(set(reasons)) == len(kinds)


def test_order_is_that_of_space_whatever_names_and_numbers_say(tmp_path):
    for seed in range(5):
        made = build.series(VALUES)
        for ds, number in zip(made, np.random.default_rng(seed).permutation(5)):
            ds.InstanceNumber, ds.SliceLocation = int(number), float(number)
        volume, _ = read_dicom(build.save(made, tmp_path / str(seed), seed=seed))
        np.testing.assert_array_equal(volume.voxels[0], VALUES)
        np.testing.assert_allclose(volume.affine, build.expected_affine(), atol=1e-6)


def test_a_small_drift_is_kept_in_the_affine(tmp_path):
    """0.2 degrees off the normal: within what scanners write, and where each slice lies is where the affine puts it."""
    made = build.series(VALUES)
    for k, ds in enumerate(made):
        ds.ImagePositionPatient = [p + 0.01 * k * o for p, o in zip(ds.ImagePositionPatient, ds.ImageOrientationPatient[:3])]
    volume, _ = read_dicom(build.save(made, tmp_path / "in"))
    last = np.array([*made[-1].ImagePositionPatient, 1]) * [-1, -1, 1, 1]
    np.testing.assert_allclose(volume.affine @ [0, 0, 4, 1], last, atol=1e-4)


def test_rounded_positions_are_even(tmp_path):
    made = build.series(VALUES, gap_mm=0.9)
    for ds in made:
        ds.ImagePositionPatient = [round(float(p), 2) for p in ds.ImagePositionPatient]
    volume, _ = read_dicom(build.save(made, tmp_path / "in"))
    np.testing.assert_allclose(volume.spacing_mm[2], 0.9, atol=0.01)


class TestTimePoints:
    VALUES = build.voxels((6, 5, 4, 3))

    def read(self, tmp_path: Path, change: Change) -> np.ndarray:
        made = build.series(self.VALUES)
        each("TemporalPositionIdentifier", None)(made)
        each("AcquisitionNumber", None)(made)
        change(made)
        return read_dicom(build.save(made, tmp_path / "in"))[0].voxels

    def test_by_acquisition_number_before_instance_number(self, tmp_path):
        def change(made: list[FileDataset]) -> None:
            for index, ds in enumerate(made):
                ds.AcquisitionNumber, ds.InstanceNumber = 9 - index // 4, index + 1  # the last acquired comes first in the files

        np.testing.assert_array_equal(self.read(tmp_path, change), np.moveaxis(self.VALUES, 3, 0)[::-1])

    def test_by_acquisition_time_which_differs_from_slice_to_slice(self, tmp_path):
        def change(made: list[FileDataset]) -> None:
            for index, ds in enumerate(made):
                ds.AcquisitionNumber, ds.InstanceNumber = 1, 100 - index
                ds.AcquisitionTime = f"1200{index:02d}.500000"

        np.testing.assert_array_equal(self.read(tmp_path, change), np.moveaxis(self.VALUES, 3, 0))

    def test_by_instance_number_where_nothing_else_tells(self, tmp_path):
        np.testing.assert_array_equal(self.read(tmp_path, lambda made: None), np.moveaxis(self.VALUES, 3, 0))

    def test_a_slice_that_one_time_point_lacks(self, tmp_path):
        with pytest.raises(InputError, match="missing slices: 1 of 4 places hold another number of slices than 3"):
            self.read(tmp_path, lambda made: made.pop(5))

    def test_a_constant_time_point(self, tmp_path):
        with pytest.raises(InputError, match="time point 2 is constant"):
            self.read(tmp_path, lambda made: each("PixelData", b"\0" * 60)(made[8:]))


class TestSeries:
    def test_echoes_and_phase_are_volumes_of_their_own(self, tmp_path):
        """As one series holds them: two echoes, and a phase image of the first."""
        parts = [build.voxels(seed=seed) for seed in range(3)]
        made = [build.series(part, uid="1.2.3", number=4) for part in parts]
        each("EchoTime", "60")(made[1])
        each("ImageType", ["ORIGINAL", "PRIMARY", "P", "ND"])(made[2])
        folder = build.save([ds for one in made for ds in one], tmp_path / "in")
        assert [one.key for one in list_series(folder)] == ["4.1", "4.2", "4.3"]
        volume, tags = read_dicom(folder, series=["4.1", "4.3"])
        np.testing.assert_array_equal(volume.voxels, np.stack([parts[0], parts[1]]))
        assert [one["echo_time_ms"] for one in tags] == [30, 60]

    def test_one_series_beside_a_localiser(self, tmp_path):
        localiser = build.series(build.voxels(seed=1)[:, :, :3], number=1)
        each("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"])(localiser)
        folder = build.save(build.series(VALUES) + localiser, tmp_path / "in")
        np.testing.assert_array_equal(read_dicom(folder)[0].voxels[0], VALUES)
        with pytest.raises(InputError, match="is a localiser"):
            read_dicom(folder, series=1)

    def test_series_by_number_or_uid(self, tmp_path):
        folder = build.save(
            build.series(VALUES, number=3, uid="1.2.3") + build.series(VALUES + 1, number=8, uid="1.2.4"), tmp_path / "in"
        )
        np.testing.assert_array_equal(read_dicom(folder, series=8)[0].voxels[0], VALUES + 1)
        np.testing.assert_array_equal(read_dicom(folder, series="1.2.3")[0].voxels[0], VALUES)
        with pytest.raises(InputError, match=r"no series 5. Fix: choose from 3 \(5 of 12 x 10, TR 2000, TE 30\), 8 \("):
            read_dicom(folder, series=5)
        with pytest.raises(InputError, match="one twice"):
            read_dicom(folder, series=[3, "1.2.3"])

    def test_numbers_that_are_used_twice(self, tmp_path):
        folder = build.save(build.series(VALUES, uid="1.2.3") + build.series(VALUES + 1, uid="1.2.4"), tmp_path / "in")
        assert [one.key for one in list_series(folder)] == ["#1", "#2"]
        np.testing.assert_array_equal(read_dicom(folder, series="#2")[0].voxels[0], VALUES + 1)

    def test_time_points_and_another_series_as_channels(self, tmp_path):
        four = build.voxels((12, 10, 5, 2))
        folder = build.save(build.series(VALUES, number=1) + build.series(four, number=2), tmp_path / "in")
        volume, tags = read_dicom(folder, series=[1, 2])
        np.testing.assert_array_equal(volume.voxels, np.concatenate([VALUES[None], np.moveaxis(four, 3, 0)]))
        assert len(tags) == 3

    def test_channels_must_lie_on_one_grid(self, tmp_path):
        moved = build.series(VALUES, number=2, origin=(-20, -30, 10.5))
        folder = build.save(build.series(VALUES, number=1) + moved, tmp_path / "in")
        with pytest.raises(InputError, match=r"corners of series 2 and 1 lie up to 0.5 mm apart"):
            read_dicom(folder, series=[1, 2])
        each("FrameOfReferenceUID", "1.2.9")(moved)
        with pytest.raises(InputError, match="series 2 and 1 have different frames of reference"):
            read_dicom(build.save(build.series(VALUES, number=1) + moved, tmp_path / "b"), series=[1, 2])
