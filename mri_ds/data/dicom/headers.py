"""One DICOM file -> its frames: planes in space with their scaling and their time, voxels not yet read.

Classic objects are one frame; enhanced multi-frame objects bring geometry, scaling and time per frame; a Siemens mosaic is
one frame that is cut into its tiles (`mosaic.py`).
Units: mm in the patient's coordinates, which run towards Left, Posterior, Superior (LPS).
Source: DICOM PS3.3, C.7.6.2 (image plane), C.8.3.1 (MR image), C.8.13 (enhanced MR).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from mri_ds.data.dicom.elements import GROUPS, Damaged, Elements, damaged, read_elements
from mri_ds.data.dicom.files import Source
from mri_ds.data.dicom.frame import Frame, StoredPixels
from mri_ds.data.dicom.mosaic import cut_mosaic, is_mosaic
from mri_ds.data.dicom.tags import ACQUISITION, IDENTIFYING, acquisition_of, names_nobody

PIXELS = ("SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored",
          "HighBit", "PixelRepresentation")  # fmt: skip
PLANE = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SpacingBetweenSlices", "RescaleSlope",
         "RescaleIntercept")  # fmt: skip
CLOCKS = ("TemporalPositionIdentifier", "AcquisitionNumber", "TriggerTime", "AcquisitionTime", "InstanceNumber")
IDENTITY = ("SeriesInstanceUID", "SeriesNumber", "SOPInstanceUID", "FrameOfReferenceUID", "ImageType", "Modality", "SOPClassUID",
            "SeriesDescription")  # fmt: skip
PRIVATE = tuple(  # creators and our elements, in the blocks where vendors put them
    tag
    for group, element in ((0x0029, 0x10), (0x0019, 0x0A), (0x0043, 0x2F))
    for block in (0x10, 0x11, 0x12)
    for tag in (group << 16 | block, group << 16 | block << 8 | element)
)
DIRECTORY = "DirectoryRecordSequence"
MORE = (*GROUPS, "ComplexImageComponent", DIRECTORY)
HEADER: tuple[str | int, ...] = (*IDENTITY, *PIXELS, *PLANE, *CLOCKS, *MORE, *ACQUISITION, *IDENTIFYING, *PRIVATE)

NO_IMAGES = {"SR", "PR", "KO", "SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "RTIMAGE", "REG", "FID", "DOC", "RWV", "M3D",
             "PLAN", "ECG", "EPS", "HD", "AU", "RESP", "EEG", "EMG", "EOG", "ASMT", "ANN"}  # fmt: skip
STANDARD = "1.2.840.10008."  # what SOP classes of the standard begin with; vendors keep raw data and reports in others
NO_PIXELS = {STANDARD + "5.1.4.1.1.66", STANDARD + "5.1.4.1.1.4.2"}  # raw data, spectroscopy
GE_COMPONENTS = {0: "M", 1: "P", 2: "R", 3: "I"}
COMPONENTS = {"MAGNITUDE": "M", "PHASE": "P", "PHASE MAP": "P", "REAL": "R", "IMAGINARY": "I"} | {c: c for c in "MPRI"}
SAME_TE_MS = 0.01


def read_frames(source: Source) -> list[Frame]:
    """The frames of one file; [] for what is no image (reports, masks, raw data, DICOMDIR, files of other kinds).

    Raises InputError for a file that is damaged: an outer slice that is left out in silence would be missed by nobody.
    """
    read = read_elements(source, HEADER)
    if read is None:
        return []
    elements, transfer_syntax = read
    try:
        first = elements[0]
        if _is_no_image(first):
            return []
        stored = _stored_pixels(first, transfer_syntax)
        if len(elements) not in (1, stored.num_frames):
            raise Damaged("NumberOfFrames")
        described = _description(first)
        frames = [_frame(source, index, one, stored, described) for index, one in enumerate(elements)]
        if len(frames) < stored.num_frames:  # frames without a place each
            return [replace(frames[0], position=None)]
        return cut_mosaic(frames[0], first) if len(frames) == 1 and is_mosaic(first) else frames
    except Damaged as err:
        raise damaged(source, str(err)) from None


def _is_no_image(get: Elements) -> bool:
    sop_class, modality = get.text("SOPClassUID"), get.text("Modality")
    if modality in NO_IMAGES or sop_class in NO_PIXELS or get.raw(DIRECTORY) is not None:
        return True
    is_private = bool(sop_class and modality) and not sop_class.startswith(
        STANDARD
    )  # a file cut off in its class has no modality
    return is_private and get.raw("Rows") is None


def _stored_pixels(first: Elements, transfer_syntax: str) -> StoredPixels:
    rows, columns, bits = (first.integer(name) or 0 for name in ("Rows", "Columns", "BitsAllocated"))
    for name, value in (("Rows", rows), ("Columns", columns), ("BitsAllocated", bits)):
        if value <= 0:
            raise Damaged(name)
    num_frames = first.integer("NumberOfFrames")
    if num_frames is not None and num_frames < 1:
        raise Damaged("NumberOfFrames")
    bits_stored = first.integer("BitsStored") or bits
    if bits not in (1, 8, 16, 32, 64) or not 0 < bits_stored <= bits:
        raise Damaged("BitsStored")
    return StoredPixels(
        transfer_syntax=transfer_syntax,
        num_frames=num_frames or 1,
        rows=rows,
        columns=columns,
        samples=first.integer("SamplesPerPixel") or 1,
        photometric=first.text("PhotometricInterpretation"),
        bits_allocated=bits,
        bits_stored=bits_stored,
        is_signed=bool(first.integer("PixelRepresentation")),
    )


def _description(first: Elements) -> tuple[str, str]:
    """The series description, and what of it may be told."""
    try:
        text = first.text("SeriesDescription")
    except Damaged:  # no volume depends on it
        return "", ""
    return text, text if names_nobody(text, first) else ""


def _frame(source: Source, index: int, get: Elements, stored: StoredPixels, described: tuple[str, str]) -> Frame:
    position, orientation = get.numbers("ImagePositionPatient", 3), get.numbers("ImageOrientationPatient", 6)
    rows_mm, columns_mm = get.numbers("PixelSpacing", 2) or (0.0, 0.0)
    slope, image_type = get.number("RescaleSlope"), get.codes("FrameType") or get.codes("ImageType")
    return Frame(
        source=source,
        index=index,
        offset=(0, 0),
        shape=(stored.rows, stored.columns),
        position=None if position is None else np.array(position),
        orientation=None if orientation is None else np.array(orientation).reshape(2, 3),
        spacing_mm=(rows_mm, columns_mm),
        slope=1.0 if slope is None else slope,
        intercept=get.number("RescaleIntercept") or 0.0,
        clocks=_clocks(get, index),
        contrast=_contrast(get, image_type),
        image_type=image_type,
        series_uid=get.text("SeriesInstanceUID"),
        series_number=get.integer("SeriesNumber"),
        space_uid=get.text("FrameOfReferenceUID"),
        instance_uid=get.text("SOPInstanceUID"),
        description=described[0],
        title=described[1],
        stored=stored,
        acquisition=acquisition_of(get),
    )


def _clocks(get: Elements, index: int) -> dict[str, Any]:
    """Enhanced frames first: their top level has one AcquisitionTime for all."""
    numbers = {
        "temporal_position": get.number("TemporalPositionIndex") or get.number("TemporalPositionIdentifier"),
        "acquisition_number": get.number("FrameAcquisitionNumber") or get.number("AcquisitionNumber"),
        "trigger_time": get.number("NominalCardiacTriggerDelayTime") or get.number("TriggerTime"),
        "b_value": get.number("DiffusionBValue"),
    }
    times = {"acquisition_time": get.text("FrameAcquisitionDateTime") or get.text("AcquisitionTime")}
    clocks: dict[str, Any] = {name: value for name, value in (numbers | times).items() if value not in (None, "")}
    return clocks | {"instance_number": (get.number("InstanceNumber") or 0.0) + index * 1e-6}


def _contrast(get: Elements, image_type: tuple[str, ...]) -> tuple[str, ...]:
    """Kind of image, magnitude or phase, echo: what one series may mix and one volume may not. As dcm2niix splits."""
    component: Any = COMPONENTS.get(get.text("ComplexImageComponent"), "")
    ge = get.private(0x0043, "GEMS_PARM_01", 0x2F)
    if isinstance(ge, int):
        component = GE_COMPONENTS.get(ge, "")
    echo_ms = get.number("EffectiveEchoTime") or get.number("EchoTime")
    echo = "" if echo_ms is None else f"{round(echo_ms / SAME_TE_MS) * SAME_TE_MS:012.2f}"
    return (echo, component, *image_type[2:])
