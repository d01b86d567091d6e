"""A Siemens mosaic: all slices of one time point as tiles of one picture -> one Frame per tile.

The header places the picture, as if it were one large slice, so the first tile's corner has to be computed; how many tiles
there are and which way they run stands in the private CSA header only.
Source: nibabel's notes "Siemens mosaic" and "CSA header"; DICOM PS3.3 C.7.6.2 for the plane.
"""

import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np

from mri_ds.data.dicom.elements import Damaged, Elements
from mri_ds.data.dicom.frame import Frame

CSA_CREATOR = "SIEMENS CSA HEADER"
MR_CREATOR = "SIEMENS MR HEADER"
MAX_TILES = 1024


def is_mosaic(get: Elements) -> bool:
    return "MOSAIC" in get.codes("ImageType")


def cut_mosaic(frame: Frame, get: Elements) -> list[Frame]:
    """The tiles in the order of acquisition along the slice normal. Without the CSA header: the frame, marked as beyond us."""
    tags = _csa_tags(get)
    count, normal = _integer(tags, "NumberOfImagesInMosaic") or _num_images(get), _vector(tags, "SliceNormalVector")
    gap_mm = get.number("SpacingBetweenSlices") or get.number("SliceThickness")
    if not count or normal is None or frame.position is None or frame.orientation is None or not gap_mm:
        return [replace(frame, beyond_us="a mosaic without its CSA header")]
    side = math.ceil(math.sqrt(count))
    rows, columns = frame.shape[0] // side, frame.shape[1] // side
    if not 1 < count <= MAX_TILES or not rows or not columns:
        raise Damaged("NumberOfImagesInMosaic")
    rows_mm, columns_mm = frame.spacing_mm
    along_row, along_column = frame.orientation
    corner = (
        frame.position
        + along_column * rows_mm * (frame.shape[0] - rows) / 2
        + along_row * columns_mm * (frame.shape[1] - columns) / 2
    )
    return [
        replace(
            frame,
            shape=(rows, columns),
            offset=(tile // side * rows, tile % side * columns),
            position=corner + tile * gap_mm * normal,
        )
        for tile in range(count)
    ]


def _num_images(get: Elements) -> int | None:
    value = get.private(0x0019, MR_CREATOR, 0x0A)
    return value if isinstance(value, int) else None


def _csa_tags(get: Elements) -> dict[str, Any]:
    content = get.private(0x0029, CSA_CREATOR, 0x10)
    if not isinstance(content, bytes):
        return {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # importing it calls itself experimental
            from nibabel.nicom import csareader
        return csareader.read(content)["tags"]
    except Exception:  # damaged bytes raise what they like
        raise Damaged("CSA header") from None


def _integer(tags: dict[str, Any], name: str) -> int | None:
    items = tags.get(name, {}).get("items") or [None]
    return items[0] if isinstance(items[0], int) else None


def _vector(tags: dict[str, Any], name: str) -> np.ndarray | None:
    """A unit vector (3,); None where absent."""
    items = [value for value in tags.get(name, {}).get("items", []) if isinstance(value, int | float)]
    if len(items) != 3:
        return None
    vector = np.array(items, dtype=np.float64)
    length = float(np.linalg.norm(vector))
    if not math.isfinite(length) or abs(length - 1) > 0.01:
        raise Damaged("CSA header")
    return vector / length
