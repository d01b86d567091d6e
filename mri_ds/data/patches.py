"""One subject, cut to the network's patch: decoded and normalised once, cropped and varied anew each time.

Axes: C channel, D H W voxels of the subject on the network's grid; lengths in mm.
In: the index of a subject and a generator for the dice.  Out: image (C, *patch), targets of the same patch.
A subject smaller than the patch stands in its middle; around it the image continues with the lowest value of its faces and labels
with background, as `inference` does it too.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mri_ds.augment.albumentations_pipeline import apply_pipeline, load_pipeline
from mri_ds.augment.transform import AugmentParams, apply, sample_params
from mri_ds.config import DataConfig, TaskConfig, Triple
from mri_ds.data.foreground import foreground_voxels
from mri_ds.data.index import ShardDataset
from mri_ds.data.preprocess import border_minimum, prepare, settings


@dataclass(frozen=True)
class Prepared:
    """A subject on the network's grid, ready to be cropped."""

    image: torch.Tensor  # (C, D, H, W) float32
    labels: dict[str, torch.Tensor]  # (D, H, W) int16
    values: dict[str, int | float]
    spacing_mm: np.ndarray
    subject_id: str
    fill: float  # what the image continues with beyond its field of view
    foreground: list[np.ndarray]  # see foreground_voxels

    @property
    def num_bytes(self) -> int:
        tensors = [self.image, *self.labels.values()]
        return sum(t.numel() * t.element_size() for t in tensors) + sum(f.nbytes for f in self.foreground)


class PatchSource:
    """Patches of the subjects of one split. Keeps the last prepared subjects in memory, up to `cache_bytes`."""

    def __init__(self, dataset: ShardDataset, data: DataConfig, tasks: Mapping[str, TaskConfig], *, cache_bytes: int) -> None:
        assert data.spacing_mm != "auto" and data.patch != "auto", "resolve `auto` with preprocess.propose first"
        self.dataset, self.data, self.tasks = dataset, data, dict(tasks)
        self.spacing_mm, self.patch = data.spacing_mm, data.patch
        self.first_map = next((name for name, task in tasks.items() if task.kind == "segmentation"), None)
        self.pipeline = load_pipeline(data.albumentations) if data.albumentations else None
        self._cache: OrderedDict[int, Prepared] = OrderedDict()
        self._free_bytes = cache_bytes

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """One patch of subject `index`: image, spacing_mm, targets (fillers where a label is missing) and subject_id."""
        subject = self.prepared(index)
        start = window_start(rng, subject.image.shape[1:], self.patch, subject.foreground, self.data.foreground_prob)
        image, labels = apply(subject.image, subject.labels, self._variation(rng, subject), start=start, fill=subject.fill)
        if self.pipeline is not None:
            image, labels = apply_pipeline(self.pipeline, image, labels, seed=int(rng.integers(2**32)))
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

    def prepared(self, index: int) -> Prepared:
        """Subject `index` on the network's grid, from memory where it is still there."""
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        subject = self._cache[index] = self._prepare(index)
        self._free_bytes -= subject.num_bytes
        while self._free_bytes < 0 and self._cache:
            self._free_bytes += self._cache.popitem(last=False)[1].num_bytes
        return subject

    def _prepare(self, index: int) -> Prepared:
        sample = prepare(self.dataset.read(index), **settings(self.data))
        targets = {name: target for name, target in sample["targets"].items() if name in self.tasks}
        maps = {name: target for name, target in targets.items() if isinstance(target, np.ndarray)}
        return Prepared(
            image=torch.from_numpy(sample["image"]),
            labels={name: torch.from_numpy(label) for name, label in maps.items()},
            values={name: value for name, value in targets.items() if name not in maps},
            spacing_mm=sample["spacing_mm"],
            subject_id=sample["subject_id"],
            fill=border_minimum(sample["image"]),
            foreground=foreground_voxels(maps[self.first_map]) if self.first_map in maps else [],
        )

    def _variation(self, rng: np.random.Generator, subject: Prepared) -> AugmentParams:
        if not self.data.augment:
            return AugmentParams(self.patch)
        return sample_params(
            rng,
            shape=self.patch,
            spacing_mm=subject.spacing_mm.tolist(),
            num_channels=subject.image.shape[0],
            strength=self.data.augment.strength,
            prob=self.data.augment.prob.model_dump(),
            flip_axes=self.data.flip_axes,
        )

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
