"""A DICOM file, folder or zip -> a volume and its acquisition tags.

Axes: C channels (series, and the time points of each), D along a row, H down the columns, W from slice to slice.
The grid is the scanner's own: nothing is flipped, the affine says where it lies. (dcm2niix flips rows, so the same volume has its
rows the other way round there, with the affine to match: the same voxels at the same places in the world.)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mri_ds.data.dicom.elements import quiet
from mri_ds.data.dicom.fallback import convert
from mri_ds.data.dicom.files import Source, open_sources
from mri_ds.data.dicom.frame import Frame
from mri_ds.data.dicom.geometry import stack
from mri_ds.data.dicom.headers import read_frames
from mri_ds.data.dicom.pixels import Undecodable, read_voxels
from mri_ds.data.dicom.series import Series, choose, group_series
from mri_ds.data.dicom.tags import Acquisition
from mri_ds.data.grid import AFFINE_TOLERANCE_MM, by
from mri_ds.data.nifti import corner_distance_mm
from mri_ds.errors import InputError

if TYPE_CHECKING:
    from mri_ds.sample import Volume


def read_dicom(path: str | Path, *, series: str | int | Sequence[str | int] | None = None) -> tuple[Volume, list[Acquisition]]:
    """DICOM file, folder (with subfolders) or zip -> Volume, voxels (C, D, H, W) float32, and one dict of tags per channel.

    series: the number of the series to read, or a pattern of its description or SeriesInstanceUID ("*flair*"), or several, which
    become channels in this order and must lie on one grid; None where there is just one beside localisers (`list_series` lists
    them). Time points become channels.
    The tags are those of `tags.py` that all slices agree on; nothing else of a header survives.
    Raises InputError for what is no DICOM or damaged, for series that are no regular grid (`geometry.stack` gives the reasons),
    for several series that differ in grid, for voxels that are not finite or constant, and where pydicom is not installed.

    >>> volume, tags = read_dicom("study/", series=[11, "*flair*"])     # doctest: +SKIP
    >>> volume.voxels.shape, tags[0]["echo_time_ms"]                      # doctest: +SKIP
    ((2, 280, 320, 22), 9.5)
    """
    path = Path(path)
    with quiet(), open_sources(path) as sources:
        chosen = choose(series_of(sources, path), series, path)
        volumes = [_read_series(one, path) for one in chosen]
    for one, volume in zip(chosen[1:], volumes[1:]):
        _check_same_grid(one, volume, chosen[0], volumes[0], path)
    tags = [one.acquisition for one, volume in zip(chosen, volumes) for _ in volume.voxels]
    if len(volumes) == 1:
        return volumes[0], tags
    return _volume(np.concatenate([volume.voxels for volume in volumes]), volumes[0].affine), tags


class ListedSeries(NamedTuple):
    """What can be told of a series. `description`: its own words where they name nobody, else ""; `num_frames` of all times."""

    key: str
    acquisition: Acquisition
    description: str
    columns: int
    rows: int
    num_frames: int
    is_localiser: bool


def list_series(path: str | Path) -> list[ListedSeries]:
    """Each series in a file, folder or zip, without reading a voxel. Raises InputError for what is damaged or no DICOM."""
    path = Path(path)
    with quiet(), open_sources(path) as sources:
        return [_listed(one) for one in series_of(sources, path)]


def _listed(one: Series) -> ListedSeries:
    first = one.frames[0]
    return ListedSeries(one.key, one.acquisition, first.title, first.shape[1], first.shape[0], len(one.frames), one.is_localiser)


def series_of(sources: Sequence[Source], path: Path) -> list[Series]:
    """All series in these files. Raises InputError where there is none."""
    frames: list[Frame] = [frame for source in sources for frame in read_frames(source)]
    if not frames:
        raise InputError("holds no DICOM image", where=path, fix="give a DICOM file, folder or zip of MRI slices")
    return group_series(frames)


def _read_series(series: Series, path: Path) -> Volume:
    sources = list(dict.fromkeys(frame.source for frame in series.frames))
    beyond = next((frame.beyond_us for frame in series.frames if frame.beyond_us), "")
    if beyond:
        return convert(sources, beyond, path)
    grid = stack(series.frames, path)
    try:
        voxels = read_voxels(grid, path)
    except Undecodable as err:
        return convert(sources, f"of transfer syntax {err}", path)
    _check_values(voxels, path)
    return _volume(voxels, grid.affine)


def _check_values(voxels: np.ndarray, path: Path) -> None:
    bad = voxels.size - np.count_nonzero(np.isfinite(voxels))
    if bad:
        raise InputError(f"{bad} of {voxels.size} voxels are NaN or infinite", where=path, fix="export it again, or leave it out")
    for channel, volume in enumerate(voxels):
        if volume.min() == volume.max():
            which = f"time point {channel} is" if len(voxels) > 1 else "image is"
            what = f"{which} constant (every voxel {volume.flat[0]:g})"
            raise InputError(what, where=path, fix="export the image again, or leave it out")


def _check_same_grid(one: Series, volume: Volume, first: Series, wanted: Volume, path: Path) -> None:
    fix = "resample one onto the other's grid, or give each as a channel of its own study"
    names = f"series {one.key} and {first.key}"
    if volume.voxels.shape[1:] != wanted.voxels.shape[1:]:
        what = f"{names} are {by(volume.voxels.shape[1:])} and {by(wanted.voxels.shape[1:])} voxels"
        raise InputError(what, where=path, fix=fix)
    if one.frames[0].space_uid != first.frames[0].space_uid:
        raise InputError(f"{names} have different frames of reference", where=path, fix="register one to the other first")
    apart = corner_distance_mm(volume.affine, wanted.affine, volume.voxels.shape[1:])
    if apart > AFFINE_TOLERANCE_MM:
        raise InputError(f"corners of {names} lie up to {apart:.3g} mm apart", where=path, fix=fix)


def _volume(voxels: np.ndarray, affine: np.ndarray) -> Volume:
    from mri_ds.sample import Volume  # pays for torch, which listing a study never needs

    return Volume(voxels, affine)
