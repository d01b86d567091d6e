"""White-matter lesions: how many, where, and their voxels.

Axes: (n, n, n) isotropic voxels; lengths in mm.
"""

import numpy as np

from mri_ds.data.synthesis.anatomy import LESION, WHITE, Anatomy
from mri_ds.data.synthesis.fields import FOV_MM

GRADES = ["none", "few", "many"]
COUNTS = {"none": (0, 0), "few": (1, 3), "many": (5, 9)}
RADIUS_MM = (5.0, 8.0)
STRETCH = 1.25  # a radius along one axis is up to this much longer or shorter
NEAR_VENTRICLES_MM = (3.0, 22.0)
GAP_MM = 5.0  # between two lesions, so that they stay two on voxels of 3 mm


def add_lesions(anatomy: Anatomy, grade: str, rng: np.random.Generator) -> np.ndarray:
    """Tissue ids with as many lesions as `grade` says, each an ellipsoid inside white matter, apart from one another."""
    tissue = anatomy.tissue.copy()
    grid = np.meshgrid(*[(np.arange(len(tissue)) + 0.5) * FOV_MM / len(tissue)] * 3, indexing="ij", sparse=True)
    for centre, radii in _place(anatomy, grade, rng):
        away = sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii, strict=True))
        tissue[(away < 1) & (anatomy.tissue == WHITE)] = LESION
    return tissue


def _place(anatomy: Anatomy, grade: str, rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Centres (3,) and radii (3,) in mm, the largest lesion first: the small ones still find a seat where little is left."""
    low, high = COUNTS[grade]
    seats = (np.argwhere(_is_seat(anatomy)) + 0.5) * FOV_MM / len(anatomy.tissue)
    placed: list[tuple[np.ndarray, np.ndarray]] = []
    for radius in np.sort(rng.uniform(*RADIUS_MM, size=rng.integers(low, high + 1)))[::-1]:
        if not len(seats):
            break
        radii = radius * rng.uniform(1 / STRETCH, STRETCH, size=3)
        centre = seats[rng.integers(len(seats))]
        placed.append((centre, radii))
        seats = seats[np.linalg.norm(seats - centre, axis=1) > (radii.max() + STRETCH * radius + GAP_MM)]
    return placed


def _is_seat(anatomy: Anatomy) -> np.ndarray:
    """White matter near the ventricles and below the cortex, (n, n, n) bool."""
    near = (anatomy.ventricle_mm > NEAR_VENTRICLES_MM[0]) & (anatomy.ventricle_mm < NEAR_VENTRICLES_MM[1])
    return near & (anatomy.tissue == WHITE) & (anatomy.cortex_mm > 3)
