"""A mask's surface as elements with an area, one at each corner point that has voxels of the mask on one side and others beside.

Axes: D H W voxels, spacing_mm (3,) their edge lengths along those axes.
In: a (D, H, W) boolean mask.  Out: which of the (D + 1, H + 1, W + 1) corner points of its voxels lie on the surface, and the
area there, mm^2.

Each corner point has eight voxels around it; which of them are in the mask says how marching cubes would cut the cell that
their centres span. Of the 256 ways, those that turning, mirroring and swapping inside for outside make equal have equal areas,
so that fourteen cells say it all; the area follows the spacing because a triangle's is the length of its normal.
Source: Lorensen and Cline 1987 (the fourteen cells); Nikolov et al. 2021, "Clinically applicable segmentation of head and neck
anatomy", whose surface-distance package is the reference for the triangles of each cell.
"""

import functools
import itertools
from collections.abc import Sequence

import numpy as np

# Corners of a cell, as digits d h w, that are inside -> the triangles that cut it: |normal| along D, H, W in eighths of the cell.
CELLS: dict[tuple[str, ...], tuple[tuple[int, int, int], ...]] = {
    (): (),
    ("000",): ((1, 1, 1),),
    ("000", "001"): ((2, 2, 0), (2, 2, 0)),
    ("000", "011"): ((1, 1, 1), (1, 1, 1)),
    ("000", "111"): ((1, 1, 1), (1, 1, 1)),
    ("000", "001", "010"): ((4, 0, 0), (2, 2, 2), (1, 1, 1)),
    ("000", "001", "110"): ((2, 2, 0), (2, 2, 0), (1, 1, 1)),
    ("000", "011", "101"): ((1, 1, 1), (1, 1, 1), (1, 1, 1)),
    ("000", "001", "010", "011"): ((4, 0, 0), (4, 0, 0)),
    ("000", "001", "010", "100"): ((2, 2, 2), (2, 2, 2), (1, 1, 1), (1, 1, 1)),
    ("000", "001", "010", "101"): ((3, 3, 3), (0, 2, 2), (2, 0, 2), (1, 1, 1)),
    ("000", "001", "010", "111"): ((4, 0, 0), (2, 2, 2), (1, 1, 1), (1, 1, 1)),
    ("000", "001", "110", "111"): ((2, 2, 0),) * 4,
    ("000", "011", "101", "110"): ((1, 1, 1),) * 4,
}
INSIDE = 255  # the code of a corner point with all eight voxels in the mask


def surfels(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corner points on the surface, (n,) flat indices into (D + 1, H + 1, W + 1), and the codes of their cells, (n,) uint8.

    `areas_mm2` is looked up by code. Corner point (d, h, w) is the one that voxel (d, h, w) and its lower neighbours share;
    beyond the volume is outside.
    """
    padded = np.pad(mask, 1).astype(np.uint8)
    d, h, w = mask.shape
    codes = np.zeros((d + 1, h + 1, w + 1), dtype=np.uint8)
    for bit, (i, j, k) in enumerate(itertools.product((0, 1), repeat=3)):
        codes |= padded[i : i + d + 1, j : j + h + 1, k : k + w + 1] << np.uint8(bit)
    flat = np.flatnonzero((codes - np.uint8(1)) < INSIDE - 1)  # neither 0, which wraps round, nor all eight
    return flat, codes.ravel()[flat]


def areas_mm2(spacing_mm: Sequence[float] | np.ndarray) -> np.ndarray:
    """Area of the surface within a cell, (256,) mm^2, by its code.

    >>> areas_mm2((1, 1, 1))[[0, 1, 15, 255]].round(4).tolist()
    [0.0, 0.2165, 1.0, 0.0]
    """
    depth, height, width = (float(edge) for edge in spacing_mm)
    faces = np.array([height * width, depth * width, depth * height])  # area of the cell's face across D, H, W
    return np.linalg.norm(_normals_by_code() / 8 * faces, axis=2).sum(axis=1)


@functools.cache
def _normals_by_code() -> np.ndarray:
    """The triangles of all 256 cells, (256, 4, 3), zeros where a cell has fewer: the fourteen, turned, mirrored, inside out."""
    by_code = np.zeros((256, 4, 3))
    for corners, triangles in CELLS.items():
        for axes in itertools.permutations(range(3)):
            for flips in itertools.product((0, 1), repeat=3):
                moved = [[int(corner[axis]) ^ flip for axis, flip in zip(axes, flips)] for corner in corners]
                code = sum(1 << (4 * i + 2 * j + k) for i, j, k in moved)
                turned = np.array(triangles).reshape(-1, 3)[:, axes]
                by_code[[code, INSIDE - code], : len(turned)] = turned
    return by_code
