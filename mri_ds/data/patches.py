"""One subject, cut to the network's patch: cropped and varied anew each time, reading no more of it than the patch shows.

Axes: C channel, D H W voxels of the subject on the network's grid; lengths in mm.
In: the index of a subject and a generator for the dice.  Out: image (C, *patch), targets of the same patch.
A subject smaller than the patch stands in its middle; around it the image continues with the lowest value of its faces and labels
with background, as `inference` does it too.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mri_ds.augment.transform import window_of
from mri_ds.config import DataConfig, TaskConfig, Triple
from mri_ds.data.index import ShardDataset
from mri_ds.data.subjects import Subjects
from mri_ds.data.variation import Variation


class PatchSource:
    """Patches of the subjects of one split. Keeps whole subjects in memory, up to `cache_bytes`: see subjects.py."""

    def __init__(self, dataset: ShardDataset, data: DataConfig, tasks: Mapping[str, TaskConfig], *, cache_bytes: int) -> None:
        assert data.spacing_mm != "auto" and data.patch != "auto", "resolve `auto` with preprocess.propose first"
        self.dataset, self.data, self.tasks = dataset, data, dict(tasks)
        self.spacing_mm, self.patch = data.spacing_mm, data.patch
        self.variation = Variation(data)
        self.subjects = Subjects(dataset, data, list(tasks), cache_bytes=cache_bytes)

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """One patch of subject `index`: image, spacing_mm, targets (fillers where a label is missing) and subject_id."""
        subject = self.subjects[index]
        start = window_start(rng, subject.shape[1:], self.patch, subject.foreground, self.data.foreground_prob)
        params = self.variation.draw(rng, spacing_mm=subject.spacing_mm.tolist(), num_channels=subject.shape[0])
        window = window_of(params, subject.shape[1:], start=start)
        image, labels = self.variation.apply(*subject.read(window.box), params, window, fill=subject.fill, rng=rng)
        return {
            "image": image,
            "spacing_mm": torch.tensor(subject.spacing_mm, dtype=torch.float32),
            "targets": {name: self._target(name, task, labels, subject.values) for name, task in self.tasks.items()},
            "subject_id": subject.subject_id,
        }

    def blank(self) -> dict[str, Any]:
        """A patch of nothing, all labels fillers: what stands in for a subject that cannot be read."""
        return {
            "image": torch.zeros(len(self.dataset.manifest.channels), *self.patch),
            "spacing_mm": torch.tensor(self.spacing_mm, dtype=torch.float32),
            "targets": {name: self._target(name, task, {}, {}) for name, task in self.tasks.items()},
            "subject_id": "",
        }

    def _target(
        self, name: str, task: TaskConfig, labels: Mapping[str, torch.Tensor], values: Mapping[str, int | float]
    ) -> torch.Tensor:
        if task.kind == "segmentation":
            return labels[name].long() if name in labels else torch.zeros(self.patch, dtype=torch.int64)
        return torch.tensor(values.get(name, 0), dtype=torch.int64 if task.kind == "classification" else torch.float32)


def window_start(
    rng: np.random.Generator,
    shape: Sequence[int],
    patch: Sequence[int],
    foreground: Sequence[np.ndarray],
    foreground_prob: float,
) -> Triple:
    """First voxel of the patch. An axis that fits is centred; on a longer one the place is random, or about a foreground voxel.

    Every class is as likely as another to be that foreground, or small ones would hardly be seen.
    """
    place = [int(rng.integers(max(n - p, 0) + 1)) for n, p in zip(shape, patch)]
    if foreground and rng.random() < foreground_prob:
        voxels = foreground[int(rng.integers(len(foreground)))]
        centre = voxels[rng.integers(len(voxels))].tolist()
        place = [min(max(c - p // 2, 0), max(n - p, 0)) for c, n, p in zip(centre, shape, patch)]
    d, h, w = (-((p - n) // 2) if n <= p else first for n, p, first in zip(shape, patch, place))
    return d, h, w
