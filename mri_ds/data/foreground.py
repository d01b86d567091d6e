"""Where the labelled voxels are: what a crop is centred on, known without reading the label map.

Axes: D H W voxels.  In: label maps (D, H, W).  Out: per class a few thousand of its voxels.
"""

from typing import Any

import numpy as np
from scipy import ndimage

MAX_FOREGROUND = 4096  # voxels per class that a crop may be centred on


def foreground_voxels(label: np.ndarray) -> list[np.ndarray]:
    """For each class but 0 that occurs, at most MAX_FOREGROUND of its voxels, evenly spread in memory order: (n, 3) int32."""
    places = foreground_places(label)
    return places_to_voxels(places, label.shape)


def foreground_places(label: np.ndarray) -> np.ndarray:
    """The same as (2, N) int32: class, and place of the voxel in memory order. Each class is sought in its own box only."""
    parts = [np.zeros((2, 0), dtype=np.int32)]
    for value, box in enumerate(ndimage.find_objects(label), start=1):
        if box is None:
            continue
        inside = np.nonzero(label[box] == value)
        every = -(-len(inside[0]) // MAX_FOREGROUND)
        coordinates = [axis[::every] + side.start for axis, side in zip(inside, box)]
        flat: Any = np.ravel_multi_index(coordinates, label.shape)
        parts.append(np.stack([np.full_like(flat, value), flat]).astype(np.int32))
    return np.concatenate(parts, axis=1)


def places_to_voxels(places: np.ndarray, shape: tuple[int, ...]) -> list[np.ndarray]:
    """(2, N) -> for each class that occurs (n, 3) int32."""
    classes, starts = np.unique(places[0], return_index=True)
    voxels = np.stack(np.unravel_index(places[1], shape), axis=1).astype(np.int32)
    return np.split(voxels, starts[1:]) if len(classes) else []
