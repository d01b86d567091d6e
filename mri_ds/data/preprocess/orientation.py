"""Voxel axes turned to run closest to Right, Anterior, Superior (canonical orientation, RAS+), and back.

Axes: C channel, D H W voxels.
Axes are permuted and flipped, nothing is interpolated: every voxel keeps its value and its place in the world, and what went
there comes back voxel for voxel, whatever the obliquity, the voxel sizes or the handedness of the input.
"""

import nibabel as nib
import numpy as np

from mri_ds.errors import InputError
from mri_ds.sample import Sample

RAS = np.array([[0, 1], [1, 1], [2, 1]])  # nibabel's notation: each axis runs along itself, forwards


def to_canonical(sample: Sample) -> Sample:
    """A sample in the orientation of its file -> in canonical orientation; a copy, always.

    Raises InputError for an affine that gives an axis no direction.
    """
    orientation = _orientation(sample["affine"], where=sample["subject_id"])
    affine = sample["affine"] @ nib.orientations.inv_ornt_aff(orientation, sample["image"].shape[1:])
    return Sample(
        subject_id=sample["subject_id"],
        image=_turn_image(sample["image"], orientation),
        affine=affine,
        spacing_mm=spacing_of(affine),
        targets={k: _turn(v, orientation) if isinstance(v, np.ndarray) else v for k, v in sample["targets"].items()},
    )


def to_input_grid(labels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The way back from `to_canonical` for a map (D, H, W); `affine` is the input's own. Axes move and flip, no voxel changes.

    >>> upside_down = np.diag([1.0, 1.0, -1.0, 1.0])
    >>> to_input_grid(np.arange(2).reshape(1, 1, 2), upside_down).ravel().tolist()
    [1, 0]
    """
    return _turn(labels, nib.orientations.ornt_transform(RAS, _orientation(affine)))


def spacing_of(affine: np.ndarray) -> np.ndarray:
    """Edge lengths of a voxel, (3,), mm."""
    return np.linalg.norm(affine[:3, :3], axis=0)


def _orientation(affine: np.ndarray, where: str = "") -> np.ndarray:
    orientation = nib.orientations.io_orientation(affine)
    if not np.isfinite(orientation).all():
        raise InputError("affine gives a voxel axis no direction", where=where, fix="repair the NIfTI header")
    return orientation


def _turn_image(image: np.ndarray, orientation: np.ndarray) -> np.ndarray:
    turned = [nib.orientations.apply_orientation(channel, orientation) for channel in image]  # views
    return np.stack(turned, out=np.empty((len(turned), *turned[0].shape), dtype=image.dtype))


def _turn(voxels: np.ndarray, orientation: np.ndarray) -> np.ndarray:
    return np.array(nib.orientations.apply_orientation(voxels, orientation), order="C")
