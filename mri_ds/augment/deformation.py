"""The dice of motion: flips, quarter turns, affine maps, elastic fields, grid distortion. spatial.py carries them out.

Axes: D H W voxels of the result, k control points.  In: a generator and the Frame.  Out: plain float64 or integer arrays.
Source: Choi and Lee 2000 for the bound that keeps elastic fields from folding space; MONAI's GridDistortion for cells that are
stretched along each axis by themselves.
"""

from collections.abc import Sequence

import numpy as np

from mri_ds.augment.frame import Arrays, Frame

NO_FOLD = 0.4  # of the distance between control points: the largest displacement that surely keeps neighbours in order
GRID_CELLS = 5  # of grid distortion, along each axis
SAME_MM = 0.01  # relative: voxel edges that differ less count as equal


def draw_flips(rng: np.random.Generator, frame: Frame, prob: float) -> Arrays:
    """Which of the allowed axes are flipped, each with chance `prob`, (n,)."""
    axes = [axis for axis in frame.flip_axes if rng.random() < prob]
    return (np.array(axes),) if axes else ()


def draw_quarter_turns(rng: np.random.Generator, frame: Frame, _on: float) -> Arrays:
    """Axes i, j and 1 to 3 quarter turns from i towards j, (3,): only in planes where voxels fall on voxels again.

    Such a plane is as long in i as in j, in voxels and in mm (to 1 %): nothing is interpolated, and nothing leaves the window.
    """
    n, mm = frame.shape, frame.spacing_mm
    planes = [(i, j) for i, j in ((0, 1), (0, 2), (1, 2)) if n[i] == n[j] and abs(mm[i] - mm[j]) < SAME_MM * mm[i]]
    if not planes:
        return ()
    i, j = planes[int(rng.integers(len(planes)))]
    return (np.array([i, j, rng.integers(1, 4)]),)


def draw_affine(
    rng: np.random.Generator, frame: Frame, rotate_deg: float, scale: float, shear: float, translate_mm: float
) -> Arrays:
    """A matrix (3, 3) and a shift in mm (3,): the window's voxel at p mm from its centre shows the source at matrix p + shift."""
    matrix = draw_matrix(rng, rotate_deg=rotate_deg, scale=scale)
    slant = np.eye(3) + np.where(np.eye(3) == 0, rng.uniform(-shear, shear, size=(3, 3)), 0)
    return slant @ matrix, rng.uniform(-translate_mm, translate_mm, size=3)


def draw_matrix(rng: np.random.Generator, *, rotate_deg: float, scale: float) -> np.ndarray:
    """Rotation by up to `rotate_deg` about each axis, times one zoom between 1 / (1 + scale) and 1 + scale; (3, 3)."""
    zoom = np.exp(rng.uniform(-1, 1) * np.log1p(scale))
    return rotation(rng.uniform(-rotate_deg, rotate_deg, size=3)) * zoom


def rotation(degrees: Sequence[float] | np.ndarray) -> np.ndarray:
    """The rotation about axis 0, then 1, then 2 by these angles, (3, 3).

    >>> rotation([0, 0, 90]).round(6).tolist()
    [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        j, k = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[j, j], turn[j, k], turn[k, j], turn[k, k] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = turn @ matrix
    return matrix


def draw_elastic(rng: np.random.Generator, frame: Frame, elastic_mm: float, grid_mm: float) -> Arrays:
    """Displacements of the control points, see draw_control_points; nothing for elastic_mm 0."""
    if not elastic_mm:
        return ()
    return (draw_control_points(rng, shape=frame.shape, spacing_mm=frame.spacing_mm, elastic_mm=elastic_mm, grid_mm=grid_mm),)


def draw_control_points(
    rng: np.random.Generator, *, shape: Sequence[int], spacing_mm: Sequence[float], elastic_mm: float, grid_mm: float
) -> np.ndarray:
    """Displacements, each within +-elastic_mm, of control points about `grid_mm` apart; (3, k, k, k), k differing by axis.

    Raises ValueError for displacements that could fold space.
    """
    if elastic_mm > NO_FOLD * grid_mm:
        raise ValueError(f"elastic_mm {elastic_mm} could fold space: keep it under {NO_FOLD} x grid_mm ({grid_mm})")
    cells = [max(1, int(n * s / grid_mm)) for n, s in zip(shape, spacing_mm)]
    return rng.uniform(-elastic_mm, elastic_mm, size=(3, *(c + 3 for c in cells)))


def draw_grid_distortion(rng: np.random.Generator, frame: Frame, strength: float) -> Arrays:
    """Where the borders of GRID_CELLS equal cells of the window lie in the source, (3, GRID_CELLS + 1), as shares of its length.

    Along each axis every cell becomes 1 - strength to 1 + strength times as long; all of them together stay as long as they were.
    Raises ValueError for a strength that could turn a cell over.
    """
    if strength >= 1:
        raise ValueError(f"grid_distortion {strength} could fold space: keep it under 1")
    lengths = rng.uniform(1 - strength, 1 + strength, size=(3, GRID_CELLS))
    ends = np.cumsum(lengths, axis=1) / lengths.sum(axis=1, keepdims=True)
    return (np.concatenate([np.zeros((3, 1)), ends], axis=1),)
