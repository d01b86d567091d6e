"""Frames -> a volume's grid: slices ordered by where they lie, time points by their clocks, and the affine; or one refusal.

In: the frames of one series.  Out: Stack, frames[t][k] with k along the slice normal, affine (4, 4) float64 in RAS+ mm as NIfTI
defines it, for voxel axes i along a row, j down the columns, k from slice to slice.
Neither file names nor instance numbers order slices. Nothing is resampled, and a gap is never bridged: each kind of series that
is no regular grid is refused with its own reason.
Source: DICOM PS3.3, C.7.6.2.1.1 (equation of the image plane); NIfTI-1 for RAS+, where x and y point the other way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mri_ds.data.dicom.frame import Frame
from mri_ds.data.nifti import MAX_VOXELS
from mri_ds.errors import InputError

SAME_DIRECTION = 1e-3  # largest difference of direction cosines that are equal
PERPENDICULAR = 1e-2  # largest product of the directions along row and column
SAME_PLACE_MM = 0.01
SAME_SPACING = 1e-3  # relative
UNEVEN = 0.05  # of a slice distance: how far a slice may lie from its even place
MAX_TILT = math.sin(math.radians(0.5))  # of the slices' drift in the plane, per slice distance
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
CLOCKS = ("temporal_position", "acquisition_number", "trigger_time", "acquisition_time", "b_value", "instance_number")
SHARED_CLOCKS = {"temporal_position", "acquisition_number", "b_value"}  # all slices of a time point have the same


@dataclass(frozen=True, eq=False)
class Stack:
    """A regular grid of frames: frames[t][k], and the affine (4, 4) that voxel (i, j, k) of each time point has."""

    frames: list[list[Frame]]
    affine: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Columns, rows, slices."""
        rows, columns = self.frames[0][0].shape
        return columns, rows, len(self.frames[0])


def stack(frames: Sequence[Frame], where: Path) -> Stack:
    """Puts frames in order. Raises InputError for a localiser, frames without a place, of mixed sizes or orientations, a single
    slice, doubled, missing or uneven slices, and gantry tilt."""
    _check_kind(frames, where)
    _check_planes(frames, where)
    directions, normal = _directions(frames[0], where)
    heights = np.array([frame.position @ normal for frame in frames])  # along the normal
    order = np.argsort(heights, kind="stable")
    starts = np.flatnonzero(np.diff(heights[order], prepend=-np.inf) > SAME_PLACE_MM)
    places = [[frames[i] for i in group] for group in np.split(order, starts[1:])]
    if len(places) == 1:
        raise _refuse("single slice", "give all slices of the series, as a folder or a zip", where)
    _check_counts(places, where)
    origin, step = _even_steps(places, normal, where)
    affine = np.eye(4)
    affine[:3, 0] = directions[0] * frames[0].spacing_mm[1]
    affine[:3, 1] = directions[1] * frames[0].spacing_mm[0]
    affine[:3, 2] = step
    affine[:3, 3] = origin
    by_time = [list(frames_at) for frames_at in zip(*_in_time(places, where))]
    if math.prod(frames[0].shape) * len(frames) > MAX_VOXELS:
        raise _refuse(f"over {MAX_VOXELS} voxels", "crop or resample it, or export fewer time points", where)
    return Stack(by_time, LPS_TO_RAS @ affine)


# ---- what no volume can be made of -----------------------------------------------------------------------------------


def _check_kind(frames: Sequence[Frame], where: Path) -> None:
    if any("LOCALIZER" in frame.image_type for frame in frames):
        raise _refuse("is a localiser", "give the diagnostic series", where)
    for frame in frames:
        if frame.stored.samples != 1 or not frame.stored.photometric.startswith("MONOCHROME"):
            raise _refuse("is in colour (RGB)", "give a greyscale series: voxels must be measured intensities", where)
        if frame.position is None or frame.orientation is None:
            missing = "position" if frame.position is None else "orientation"
            raise _refuse(f"has no {missing} in space", "export the original series: derived pictures often lose it", where)
        if min(frame.spacing_mm) <= 0:
            raise _refuse("has no pixel spacing", "export the original series again", where)


def _check_planes(frames: Sequence[Frame], where: Path) -> None:
    first = frames[0]
    shapes = sorted({frame.shape for frame in frames})
    if len(shapes) > 1:
        text = ", ".join(f"{columns} x {rows}" for rows, columns in shapes[:3])
        raise _refuse(f"mixed sizes of slices ({text})", "give one series at a time", where)
    turned = max(float(np.abs(frame.orientation - first.orientation).max()) for frame in frames)  # type: ignore[operator]
    if turned > SAME_DIRECTION:
        raise _refuse("mixed orientations", "give one series at a time; three-plane scouts and projections are no volume", where)
    for frame in frames:
        if not np.allclose(frame.spacing_mm, first.spacing_mm, rtol=SAME_SPACING, atol=0):
            raise _refuse("mixed pixel spacings", "give one series at a time", where)


def _directions(frame: Frame, where: Path) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (2, 3) along a row and along a column, and their normal (3,)."""
    lengths = np.linalg.norm(frame.orientation, axis=1, keepdims=True)  # type: ignore[arg-type]
    if not np.allclose(lengths, 1, atol=PERPENDICULAR):
        raise _refuse("orientation is not two unit vectors", "export the original series again", where)
    directions = frame.orientation / lengths  # type: ignore[operator]
    if abs(directions[0] @ directions[1]) > PERPENDICULAR:
        raise _refuse("rows and columns are not perpendicular", "export the original series again", where)
    normal = np.cross(directions[0], directions[1])
    return directions, normal / np.linalg.norm(normal)


def _check_counts(places: list[list[Frame]], where: Path) -> None:
    """Every place holds as many frames, and no instance twice."""
    counts = [len(place) for place in places]
    for place in places:
        instances = [(frame.instance_uid, frame.index) for frame in place if frame.instance_uid]
        if len(set(instances)) < len(instances):
            what = f"doubled slices: {len(instances)} files are one and the same"
            raise _refuse(what, "take the copies out", where)
    if min(counts) < max(counts):
        usual = max(set(counts), key=counts.count)
        odd = sum(count != usual for count in counts)
        kind = "doubled slices" if max(counts) > usual else "missing slices"
        what = f"{kind}: {odd} of {len(counts)} places hold another number of slices than {usual}"
        raise _refuse(what, "export the series again, complete and alone", where)


def _even_steps(places: list[list[Frame]], normal: np.ndarray, where: Path) -> tuple[np.ndarray, np.ndarray]:
    """Centre of the first voxel and the step to the next slice, both (3,), LPS mm."""
    points = np.array([place[0].position for place in places])
    for k, place in enumerate(places):
        apart = max(float(np.abs(frame.position - points[k]).max()) for frame in place)
        if apart > SAME_PLACE_MM * 10:
            raise _refuse("slices at one height lie beside each other", "give one stack at a time", where)
    gaps = np.diff(points @ normal)
    usual = float(np.median(gaps))
    if gaps.max() > (1 + UNEVEN) * usual or gaps.min() < (1 - UNEVEN) * usual:
        num_missing = int(np.rint(gaps / usual - 1).clip(0).sum())
        if num_missing:
            raise _refuse(f"missing slices: {num_missing} between {len(places)}", "export the series again, complete", where)
        what = f"slices lie unevenly, {gaps.min():.3g} to {gaps.max():.3g} mm apart"
        raise _refuse(what, "export the original series; overlapping stacks are no volume", where)
    step = (points[-1] - points[0]) / (len(points) - 1)
    even = points[0] + np.arange(len(points))[:, None] * step
    if np.linalg.norm(step - (step @ normal) * normal) > MAX_TILT * np.linalg.norm(step):
        angle = math.degrees(math.acos(min(1.0, float(step @ normal / np.linalg.norm(step)))))
        what = f"gantry tilt: slices are stacked {angle:.1f} degrees off their normal"
        raise _refuse(what, "resample it to a rectangular grid first", where)
    if np.linalg.norm(points - even, axis=1).max() > max(UNEVEN * usual, SAME_PLACE_MM):
        raise _refuse("slices do not lie on one line", "export the original series again", where)
    return points[0], step


# ---- time ------------------------------------------------------------------------------------------------------------


def _in_time(places: list[list[Frame]], where: Path) -> list[list[Frame]]:
    """The frames at each place, earliest first, by the first clock that tells them apart at every place."""
    if len(places[0]) == 1:
        return places
    for clock in CLOCKS:
        times = [[frame.clocks.get(clock) for frame in place] for place in places]
        if all(None not in at and len(set(at)) == len(at) for at in times):
            alike = len({frozenset(at) for at in times}) == 1
            if alike or clock not in SHARED_CLOCKS:
                return [sorted(place, key=lambda frame: frame.clocks[clock]) for place in places]
    what = f"doubled slices: {len(places[0])} at each place, with nothing to tell them apart"
    raise _refuse(what, "take the copies out", where)


def _refuse(what: str, fix: str, where: Path) -> InputError:
    return InputError(what, where=where, fix=fix)
