"""A small anatomy as a label map on disk, with FreeSurfer's ids and in FreeSurfer's orientation."""

from pathlib import Path

import nibabel as nib
import numpy as np

IDS = [0, 2, 3, 4, 24, 41, 42, 43, 507]
LIA = np.array([[-1.0, 0, 0, 20], [0, 0, 1, -18], [0, -1, 0, 22], [0, 0, 0, 1]])


def nested_ellipsoids(shape=(40, 44, 36)) -> np.ndarray:
    """Scalp 507, fluid 24, cortex 3 / 42, white matter 2 / 41, ventricles 4 / 43; left ids where the first axis is small."""
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    reach = np.sqrt(sum(g**2 for g in grid))
    labels = np.zeros(shape, dtype=np.int32)
    for radius, left, right in ((0.9, 507, 507), (0.8, 24, 24), (0.7, 3, 42), (0.5, 2, 41), (0.2, 4, 43)):
        inside = reach < radius
        labels[inside] = np.where(grid[0] < 0, left, right)[inside]
    return labels


def write_map(path: Path, voxels: np.ndarray, affine: np.ndarray = LIA, dtype=np.float32) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels.astype(dtype), affine), path)
    return path
