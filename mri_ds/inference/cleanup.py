"""Connected parts of a label map that are not believed: they go to the next best class.

Axes: D H W voxels, volumes in mL.
Two rules. Parts far smaller than any that people drew in training (data/parts.py), always; and, of classes where it was found to
help on validation subjects, all parts but the largest: `cleanup.json` in the run's folder, which `choose` writes.

    {"split": "val", "subjects": 12, "keep_largest": {"tissue": ["csf"]}, "dice": {"tissue": {"csf": [0.81, 0.83]}}}
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from mri_ds.config import TaskConfig
from mri_ds.data.parts import CONNECTED, small_parts
from mri_ds.errors import InputError

FILE = "cleanup.json"


def clean_up(
    labels: np.ndarray, second: np.ndarray, task: TaskConfig, keep_largest: Sequence[str], voxel_ml: float
) -> dict[str, float]:
    """Changes `labels` (D, H, W) in place; returns the mL that were taken from each class.

    second (D, H, W): the next best class of each voxel.
    """
    dropped = np.zeros(labels.shape, dtype=bool)
    dropped_ml = [0.0] * len(task.classes)
    if task.smallest_part_ml:  # tasks from before parts were measured have no smallest one
        is_always_present = [share == 1 for share in task.class_presence]
        dropped, dropped_ml = small_parts(labels, task.smallest_part_ml, is_always_present, voxel_ml)
    boxes = ndimage.find_objects(labels, max_label=len(task.classes) - 1) if keep_largest else []
    for k, box in enumerate(boxes, start=1):
        if task.classes[k] in keep_largest and box is not None:
            lesser = but_the_largest(labels[box] == k) & ~dropped[box]
            dropped[box] |= lesser
            dropped_ml[k] += float(lesser.sum()) * voxel_ml
    labels[dropped] = second[dropped]
    return {name: ml for name, ml in zip(task.classes, dropped_ml) if ml}


def but_the_largest(mask: np.ndarray) -> np.ndarray:
    """All connected parts of a mask (D, H, W) but the largest; of equal ones the first stays.

    >>> but_the_largest(np.array([[[True, True, False, True]]])).astype(int).tolist()
    [[[0, 0, 0, 1]]]
    """
    parts, _ = ndimage.label(mask, CONNECTED)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return mask & (parts != int(sizes.argmax()))  # type: ignore[no-any-return]


def read_cleanup(run_dir: Path, tasks: Mapping[str, TaskConfig]) -> dict[str, list[str]]:
    """{task: classes of which the largest part alone is kept}; {} without the file. Raises InputError for another file."""
    path = run_dir / FILE
    if not path.is_file():
        return {}
    try:
        chosen = json.loads(path.read_bytes())["keep_largest"]
        known = all(set(names) <= set(tasks[name].classes[1:]) for name, names in chosen.items())
    except (ValueError, KeyError, TypeError, AttributeError):
        known = False
    if not known:
        raise InputError("names no classes of this run", where=path, fix="choose again with `mri-ds cleanup`, or remove it")
    return {name: list(names) for name, names in chosen.items()}


def digest(keep_largest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(keep_largest, sort_keys=True).encode()).hexdigest()[:16] if keep_largest else ""
