"""A frame: one plane in space, with its scaling and its time; its voxels are still in the file.

Units: mm in the patient's coordinates, which run towards Left, Posterior, Superior (LPS).
Source: DICOM PS3.3, C.7.6.2 (image plane) and C.7.6.3 (image pixels).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mri_ds.data.dicom.files import Source
from mri_ds.data.dicom.tags import Acquisition


@dataclass(frozen=True)
class StoredPixels:
    """How a file's pixels are encoded."""

    transfer_syntax: str
    num_frames: int
    rows: int
    columns: int
    samples: int
    photometric: str
    bits_allocated: int
    bits_stored: int
    is_signed: bool


@dataclass(frozen=True, eq=False)
class Frame:
    """One plane. `offset` is its first row and column in the stored frame, `shape` its rows and columns."""

    source: Source
    index: int  # of the stored frame in the file
    offset: tuple[int, int]
    shape: tuple[int, int]
    position: np.ndarray | None  # (3,) centre of the first voxel, LPS mm
    orientation: np.ndarray | None  # (2, 3) directions along a row and along a column
    spacing_mm: tuple[float, float]  # between rows, between columns; 0 where it is not said
    slope: float
    intercept: float
    clocks: Mapping[str, float | str]  # what orders time points
    contrast: tuple[str, ...]  # frames that differ here belong to different volumes
    image_type: tuple[str, ...]
    series_uid: str
    series_number: int | None
    space_uid: str  # frame of reference
    instance_uid: str
    description: str  # of the series, upper case: to choose by, never to be told
    title: str  # the same where it names nobody, else ""
    stored: StoredPixels
    acquisition: Acquisition
    beyond_us: str = ""  # why only another program can read it
