"""A label map as a DICOM Segmentation object, so that it goes back to where the images came from.

Axes: D along a row, H down the columns, W from slice to slice, as `read_dicom` gives them.
One binary segment per class but background; frames lie where the slices of the source series lie, and refer to them. Patient and
study are copied from the source, as the standard demands: the file is as confidential as the images.
Source: DICOM PS3.3, A.51 (Segmentation IOD); written by highdicom (Bridge et al. 2022), of the extra `dicom`.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mri_ds import __version__
from mri_ds.data.dicom.elements import quiet
from mri_ds.data.dicom.files import open_sources
from mri_ds.data.dicom.frame import Frame
from mri_ds.data.dicom.geometry import stack
from mri_ds.data.dicom.read import series_of
from mri_ds.data.dicom.series import choose
from mri_ds.errors import InputError

NAME, SCHEME = "mri_ds", "99MRI_DS"
SERIES_NUMBER = 9000  # far from a scanner's own
MUST_BE_THERE = (  # of patient and study, though they may be empty
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime"),
    *("AccessionNumber", "ReferringPhysicianName"),
)


def write_segmentation(
    path: Path, labels: np.ndarray, classes: Sequence[str], *, source: Path, series: Sequence[str | int] = ()
) -> Path | None:
    """Writes labels (D, H, W) int, indices into `classes` (background first), complete or not at all; returns `path`.

    source, series: what `read_dicom` was given for the image of this grid; of several series the first. None, and no file, where
    the series could only be read by another program, so that its slices are not known. Raises InputError without highdicom.
    """
    try:
        import highdicom
    except ImportError:
        raise InputError("DICOM SEG needs highdicom", where=path, fix='pip install "mri_ds[dicom]"') from None
    assert highdicom.__version__
    with quiet(), open_sources(source) as sources:
        chosen = choose(series_of(sources, source), list(series[:1]) or None, source)[0]
        if any(frame.beyond_us for frame in chosen.frames):
            return None
        slices = stack(chosen.frames, source).frames[0]
        made = _segmentation(labels, classes, slices, _headers(slices))
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        made.save_as(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _headers(slices: Sequence[Frame]) -> list[Any]:
    """The files of the slices without pixels, each once."""
    import pydicom

    found: dict[str, Any] = {}
    for frame in slices:
        if frame.source.label not in found:
            with frame.source.open() as file:
                header = pydicom.dcmread(file, stop_before_pixels=True)
            for name in MUST_BE_THERE:
                if name not in header:
                    setattr(header, name, None)
            found[frame.source.label] = header
    return list(found.values())


def _segmentation(labels: np.ndarray, classes: Sequence[str], slices: Sequence[Frame], headers: Sequence[Any]) -> Any:
    from highdicom import PixelMeasuresSequence, PlaneOrientationSequence, PlanePositionSequence
    from highdicom.enum import CoordinateSystemNames
    from highdicom.seg import Segmentation, SegmentationTypeValues
    from pydicom.uid import generate_uid

    frames = np.ascontiguousarray(labels.transpose(2, 1, 0)).astype(np.uint16 if len(classes) > 256 else np.uint8)
    first = slices[0]
    assert first.position is not None and first.orientation is not None and frames.shape == (len(slices), *first.shape)
    gap_mm = float(np.linalg.norm(slices[1].position - first.position))  # type: ignore[operator]
    who = [first.instance_uid, first.series_uid, hashlib.sha256(frames.tobytes()).hexdigest(), *classes]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an empty segmentation; of attributes that scanners leave out
        return Segmentation(
            source_images=headers,
            pixel_array=frames,
            segmentation_type=SegmentationTypeValues.BINARY,
            segment_descriptions=[_describe(number, name) for number, name in enumerate(classes) if number],
            series_instance_uid=generate_uid(entropy_srcs=["series", *who]),
            series_number=SERIES_NUMBER,
            sop_instance_uid=generate_uid(entropy_srcs=["instance", *who]),
            instance_number=1,
            manufacturer=NAME,
            manufacturer_model_name=NAME,
            software_versions=__version__,
            device_serial_number=NAME,
            series_description="predicted by mri_ds",
            plane_positions=[
                PlanePositionSequence(CoordinateSystemNames.PATIENT, [float(v) for v in one.position])  # type: ignore[union-attr]
                for one in slices
            ],
            plane_orientation=PlaneOrientationSequence(
                CoordinateSystemNames.PATIENT, [float(v) for v in first.orientation.ravel()]
            ),
            pixel_measures=PixelMeasuresSequence(first.spacing_mm, slice_thickness=gap_mm, spacing_between_slices=gap_mm),
        )


def _describe(number: int, name: str) -> Any:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription
    from highdicom.sr.coding import CodedConcept
    from pydicom.sr.codedict import codes

    return SegmentDescription(
        segment_number=number,
        segment_label=name[:64],
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=CodedConcept(f"class-{number}", SCHEME, name[:64]),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence(NAME, codes.DCM.ArtificialIntelligence, __version__),
    )
