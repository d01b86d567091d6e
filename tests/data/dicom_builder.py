"""DICOM files made for tests: classic series, enhanced multi-frame objects and Siemens mosaics of known voxels.

`series(...)` returns pydicom datasets to change at will; `save(datasets, folder)` writes them under names in no useful order.
"""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID, EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

OBLIQUE = (0.9961947, 0.0, -0.0871557, 0.0151344, 0.9848078, 0.1729873)  # 5 degrees about y, then 10 about x
FRAME_OF_REFERENCE = "1.2.826.0.1.3680043.8.498.77"


def voxels(shape: Sequence[int] = (12, 10, 5), *, seed: int = 0, highest: int = 1000) -> np.ndarray:
    """(columns, rows, slices) or (columns, rows, slices, time points) uint16."""
    return np.random.default_rng(seed).integers(0, highest, size=shape).astype(np.uint16)


def header(sop_class: UID = MRImageStorage, *, uid: str | None = None, number: int | None = 7) -> FileDataset:
    """What every file has, with neither place nor pixels."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset("made", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    ds.Modality, ds.ImageType = "MR", ["ORIGINAL", "PRIMARY", "M", "ND"]
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.1", uid or generate_uid()
    ds.FrameOfReferenceUID, ds.SeriesNumber = FRAME_OF_REFERENCE, number
    ds.Manufacturer, ds.ManufacturerModelName = "SIEMENS", "Skyra"
    ds.MagneticFieldStrength, ds.RepetitionTime, ds.EchoTime, ds.FlipAngle = "3", "2000", "30", "90"
    ds.PatientPosition, ds.StudyDate, ds.StudyTime = "HFS", "20200102", "120000"  # without them GDCM writes the hour of the test
    return ds


def add_pixels(ds: Dataset, stored: np.ndarray, *, bits_stored: int = 16) -> None:
    """stored (rows, columns) or (frames, rows, columns), 8, 16 or 32 bits."""
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = stored.shape[-2:]
    ds.BitsAllocated, ds.BitsStored = stored.dtype.itemsize * 8, min(bits_stored, stored.dtype.itemsize * 8)
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, int(stored.dtype.kind == "i")
    ds.PixelData = np.ascontiguousarray(stored).tobytes() + b"\0" * (stored.nbytes % 2)
    ds["PixelData"].VR = "OW" if stored.dtype.itemsize > 1 else "OB"


def position(k: float, *, orientation: Sequence[float], gap_mm: float, origin: Sequence[float]) -> list[float]:
    normal = np.cross(orientation[:3], orientation[3:])
    return [round(float(v), 6) for v in np.array(origin) + k * gap_mm * normal]


def series(
    values: np.ndarray,
    *,
    orientation: Sequence[float] = OBLIQUE,
    spacing_mm: tuple[float, float] = (1.5, 1.25),
    gap_mm: float = 3.0,
    origin: Sequence[float] = (-20.0, -30.0, 10.0),
    **head: Any,
) -> list[FileDataset]:
    """A classic series: one file per slice (and time point), instance numbers running against the geometry."""
    four = values[..., None] if values.ndim == 3 else values
    head.setdefault("uid", generate_uid())
    made = []
    for t in range(four.shape[3]):
        for k in range(four.shape[2]):
            ds = header(**head)
            ds.ImageOrientationPatient = [f"{v:.7f}" for v in orientation]
            ds.ImagePositionPatient = position(k, orientation=orientation, gap_mm=gap_mm, origin=origin)
            ds.PixelSpacing, ds.SliceThickness, ds.SpacingBetweenSlices = list(spacing_mm), gap_mm, gap_mm
            ds.InstanceNumber = t * four.shape[2] + (four.shape[2] - k)
            if four.shape[3] > 1:
                ds.TemporalPositionIdentifier, ds.AcquisitionNumber = t + 1, t + 1
            add_pixels(ds, four[:, :, k, t].T)
            made.append(ds)
    return made


def enhanced(
    values: np.ndarray, *, orientation: Sequence[float] = OBLIQUE, gap_mm: float = 3.0, shuffle: int | None = 1
) -> FileDataset:
    """One enhanced MR object, each frame with its own rescale; frames shuffled (None: slices first, then time points)."""
    four = values[..., None] if values.ndim == 3 else values
    ds = header(EnhancedMRImageStorage)
    order = [(k, t) for t in range(four.shape[3]) for k in range(four.shape[2])]
    if shuffle is not None:
        np.random.default_rng(shuffle).shuffle(order)
    measures, plane = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [1.5, 1.25], gap_mm
    plane.ImageOrientationPatient = [f"{v:.7f}" for v in orientation]
    shared = Dataset()
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Items([measures]), Items([plane])
    ds.SharedFunctionalGroupsSequence = Items([shared])
    ds.PerFrameFunctionalGroupsSequence = Items([])
    ds.Manufacturer, ds.DimensionIndexSequence = "Philips Medical Systems", Items([])
    for pointer in (0x00209056, 0x00209128, 0x00209057):  # stack, time point, slice
        dimension = Dataset()
        dimension.DimensionIndexPointer, dimension.FunctionalGroupPointer = pointer, 0x00209111
        ds.DimensionIndexSequence.append(dimension)
    for k, t in order:
        frame, content, place, scale = Dataset(), Dataset(), Dataset(), Dataset()
        content.TemporalPositionIndex, content.InStackPositionNumber, content.StackID = t + 1, k + 1, "1"
        content.DimensionIndexValues = [1, t + 1, k + 1]
        place.ImagePositionPatient = position(k, orientation=orientation, gap_mm=gap_mm, origin=(-20, -30, 10))
        scale.RescaleSlope, scale.RescaleIntercept, scale.RescaleType = "2", "-8", "US"
        frame.FrameContentSequence, frame.PlanePositionSequence = Items([content]), Items([place])
        frame.PixelValueTransformationSequence = Items([scale])
        ds.PerFrameFunctionalGroupsSequence.append(frame)
    ds.NumberOfFrames, ds.InstanceNumber = len(order), 1
    add_pixels(ds, np.stack([four[:, :, k, t].T for k, t in order]))
    return ds


def mosaic(
    values: np.ndarray, *, orientation: Sequence[float] = OBLIQUE, gap_mm: float = 3.0, reverse: bool = False
) -> FileDataset:
    """One Siemens mosaic of (columns, rows, slices), with a CSA header; `reverse`: the slices run against the normal."""
    columns, rows, count = values.shape
    side = int(np.ceil(np.sqrt(count)))
    picture = np.zeros((side * rows, side * columns), dtype=values.dtype)
    for k in range(count):
        top, left = k // side * rows, k % side * columns
        picture[top : top + rows, left : left + columns] = values[:, :, k].T
    normal = np.cross(orientation[:3], orientation[3:]) * (-1 if reverse else 1)
    corner = np.array([-20.0, -30.0, 10.0])
    along_row, along_column = np.array(orientation[:3]), np.array(orientation[3:])
    ds = header()
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
    ds.ImageOrientationPatient, ds.PixelSpacing = [f"{v:.7f}" for v in orientation], [1.5, 1.25]
    shift = along_column * 1.5 * (side - 1) * rows / 2 + along_row * 1.25 * (side - 1) * columns / 2
    ds.ImagePositionPatient = [round(float(v), 6) for v in corner - shift]
    ds.SliceThickness, ds.SpacingBetweenSlices, ds.InstanceNumber = gap_mm, gap_mm, 1
    ds.AcquisitionMatrix = [rows, 0, 0, columns]
    add_pixels(ds, picture)
    block = ds.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
    block.add_new(0x08, "CS", "IMAGE NUM 4")
    block.add_new(
        0x10, "OB", csa({"NumberOfImagesInMosaic": ("US", [str(count)]), "SliceNormalVector": ("FD", list(map(str, normal)))})
    )
    ds.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", count)
    return ds


def csa(tags: dict[str, tuple[str, list[str]]]) -> bytes:
    """A CSA2 header of these tags: {name: (VR, values)}."""
    out = b"SV10\4\3\2\1" + struct.pack("<II", len(tags), 77)
    for name, (vr, values) in tags.items():
        out += struct.pack("<64si4siii", name.encode(), len(values), vr.encode(), 0, max(6, len(values)), 77)
        for i in range(max(6, len(values))):
            item = values[i].encode() + b"\0" if i < len(values) else b""
            out += struct.pack("<iiii", len(item), len(item), 77, len(item)) + item + b"\0" * (-len(item) % 4)
    return out


def save(datasets: Sequence[Dataset], folder: Path, *, seed: int = 3) -> Path:
    """Writes each under a name that says nothing of its order."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(np.random.default_rng(seed).permutation(len(datasets))):
        pydicom.dcmwrite(folder / f"IM{name:05d}.dcm", datasets[number], enforce_file_format=True)
    return folder


def expected_affine(
    *, orientation: Sequence[float] = OBLIQUE, spacing_mm: tuple[float, float] = (1.5, 1.25), gap_mm: float = 3.0
) -> np.ndarray:
    """Of `series(...)`, by the equation of the image plane, in RAS+."""
    affine = np.eye(4)
    affine[:3, 0] = np.array(orientation[:3]) * spacing_mm[1]
    affine[:3, 1] = np.array(orientation[3:]) * spacing_mm[0]
    affine[:3, 2] = np.cross(orientation[:3], orientation[3:]) * gap_mm
    affine[:3, 3] = (-20, -30, 10)
    return np.diag([-1.0, -1, 1, 1]) @ affine
