"""Subjects on the network's grid, ready to be cropped: whole in memory, or a box at a time from the shard.

Axes: C channel, D H W voxels of the network's grid; lengths in mm.
In: a ShardDataset and what `preprocess` shall do.  Out: by index, an object whose `read(box)` gives image and label maps there.
Whole subjects are kept while there is room for them. One that finds no room, or is many times as large as a patch, is read from
the shard box by box, where that gives the same voxels: on the stored grid, with intensities known from meta.json. Others are
prepared anew, and push out the oldest.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mri_ds.config import DataConfig, Intensity
from mri_ds.data.foreground import foreground_voxels
from mri_ds.data.index import ShardDataset
from mri_ds.data.intensity import scale
from mri_ds.data.members import SampleMeta
from mri_ds.data.preprocess import border_minimum, grid_shape, normalize, prepare, settings

Box = tuple[slice, slice, slice]
# One core, two channels, patches of 64^3: preparing takes 55 ms (128^3) or 635 ms (256^3) and saves 7 ms of every later patch.
# So a volume of n patches is worth keeping after some 1.4 n of them
MANY_PATCHES = 32.0


class Subject(Protocol):
    """One subject, whoever holds its voxels."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # C D H W
    @property
    def values(self) -> dict[str, int | float]: ...  # class indices and regression targets
    @property
    def spacing_mm(self) -> np.ndarray: ...
    @property
    def subject_id(self) -> str: ...
    @property
    def fill(self) -> float: ...  # what the image continues with beyond its field of view
    @property
    def foreground(self) -> list[np.ndarray]: ...  # see foreground_voxels

    def read(self, box: Box) -> tuple[Tensor, dict[str, Tensor]]:
        """Image (C, *box) float32 and label maps (*box) int16. Neither may be changed."""


@dataclass(frozen=True)
class WholeSubject:
    """All voxels in memory."""

    image: Tensor  # (C, D, H, W) float32
    labels: dict[str, Tensor]  # (D, H, W) int16
    values: dict[str, int | float]
    spacing_mm: np.ndarray
    subject_id: str
    fill: float
    foreground: list[np.ndarray]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.image.shape)

    @property
    def num_bytes(self) -> int:
        tensors = [self.image, *self.labels.values()]
        return sum(t.numel() * t.element_size() for t in tensors) + sum(f.nbytes for f in self.foreground)

    def read(self, box: Box) -> tuple[Tensor, dict[str, Tensor]]:
        return self.image[(slice(None), *box)], {name: label[box] for name, label in self.labels.items()}


@dataclass(frozen=True)
class StoredSubject:
    """No voxel in memory: each box is read from the shard, its chunks alone, and normalised by numbers that meta.json tells."""

    dataset: ShardDataset
    index: int
    meta: SampleMeta
    intensities: list[Intensity]
    maps: list[str]  # segmentation tasks, the one that crops are centred on first
    values: dict[str, int | float]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.meta.shape

    @property
    def num_bytes(self) -> int:
        """What it would take as a WholeSubject, without its foreground."""
        present = sum(self.dataset.has_label(self.index, task) for task in self.maps)
        return math.prod(self.shape[1:]) * (4 * self.shape[0] + 2 * present)

    @property
    def spacing_mm(self) -> np.ndarray:
        return np.array(self.meta.spacing_mm)

    @property
    def subject_id(self) -> str:
        return self.meta.subject_id

    @property
    def fill(self) -> float:
        """Normalising keeps order, so the lowest value before it gives the lowest after it."""
        lowest = np.array([channel.border_min for channel in self.meta.intensity], dtype=np.float32)
        return border_minimum(normalize(lowest[:, None, None, None], intensities=self.intensities))

    @cached_property
    def foreground(self) -> list[np.ndarray]:
        return self.dataset.foreground(self.index, self.maps[0]) if self.maps else []

    def read(self, box: Box) -> tuple[Tensor, dict[str, Tensor]]:
        start, shape = [side.start for side in box], [side.stop - side.start for side in box]
        sample = self.dataset.read_crop(self.index, start, shape, tasks=self.maps)
        labels = {name: torch.from_numpy(label) for name, label in sample["targets"].items() if isinstance(label, np.ndarray)}
        return torch.from_numpy(normalize(sample["image"], intensities=self.intensities)), labels


class Subjects:
    """Index of the dataset -> Subject; whole ones take at most about `cache_bytes` of memory."""

    def __init__(self, dataset: ShardDataset, data: DataConfig, tasks: Sequence[str], *, cache_bytes: int) -> None:
        """`tasks`: whose labels are wanted. `data` has no "auto" left."""
        assert data.spacing_mm != "auto" and data.patch != "auto", "resolve `auto` with preprocess.propose first"
        self.dataset, self.data, self.tasks = dataset, data, list(tasks)
        self.spacing_mm, self.patch_voxels = data.spacing_mm, math.prod(data.patch)
        self.maps = [name for name in self.tasks if dataset.tasks[name].kind == "segmentation"]
        self._whole: OrderedDict[int, WholeSubject] = OrderedDict()
        self._free_bytes = cache_bytes

    def __getitem__(self, index: int) -> Subject:
        if index in self._whole:
            self._whole.move_to_end(index)
            return self._whole[index]
        meta = self.dataset.meta(index)
        intensities = self._intensities(meta)
        if intensities and self._is_as_stored(meta):
            values = {name: value for name, value in meta.values.items() if name in self.tasks}
            stored = StoredSubject(self.dataset, index, meta, intensities, self.maps, values)
            is_large = math.prod(stored.shape[1:]) >= MANY_PATCHES * self.patch_voxels
            if is_large or stored.num_bytes > self._free_bytes:
                return stored
        subject = self._whole[index] = self._prepare(index, intensities)
        self._free_bytes -= subject.num_bytes
        while self._free_bytes < 0 and self._whole:
            self._free_bytes += self._whole.popitem(last=False)[1].num_bytes
        return subject

    def _intensities(self, meta: SampleMeta) -> list[Intensity]:
        """What the channels are normalised with; [] where only the voxels tell."""
        if self.data.normalization == "dataset":
            return self.data.intensities
        clips = [channel.clip(self.data.clip_percentiles) for channel in meta.intensity]
        known = [scale(clip) for clip in clips if clip is not None]
        return known if len(known) == len(clips) and not self.data.bias_correction else []

    def _is_as_stored(self, meta: SampleMeta) -> bool:
        """Whether preparing would leave every voxel where it is."""
        shape = meta.shape[1:]
        is_whole = self.data.crop_margin_mm is None and not self.data.bias_correction
        return is_whole and grid_shape(shape, meta.spacing_mm, self.spacing_mm) == shape

    def _prepare(self, index: int, intensities: list[Intensity]) -> WholeSubject:
        sample = prepare(self.dataset.read(index, tasks=self.tasks), **settings(self.data) | {"intensities": intensities})
        maps = {name: target for name, target in sample["targets"].items() if isinstance(target, np.ndarray)}
        return WholeSubject(
            image=torch.from_numpy(sample["image"]),
            labels={name: torch.from_numpy(label) for name, label in maps.items()},
            values={name: value for name, value in sample["targets"].items() if name not in maps},
            spacing_mm=sample["spacing_mm"],
            subject_id=sample["subject_id"],
            fill=border_minimum(sample["image"]),
            foreground=foreground_voxels(maps[self.maps[0]]) if self.maps and self.maps[0] in maps else [],
        )
