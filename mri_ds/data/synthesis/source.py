"""Synthetic samples while training, beside those of the shards.

Axes: C channel, P Q R voxels of the patch.
`LabelMapSource.draw(index, rng)` gives what `PatchSource.draw` gives, from label map `index`. `with_synthesis` puts both in one
line: indices 0 to n - 1 are the subjects of the shards, those from n on are synthetic, as many as make up the wanted share. So an
epoch shows every subject once as ever, and a synthetic place is another image each time, as its dice are those of its position.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mri_ds.augment.transform import window_of
from mri_ds.config import DataConfig, SynthesisConfig, TaskConfig, Triple, nearest
from mri_ds.data.order import num_synthetic
from mri_ds.data.patches import PatchSource
from mri_ds.data.preprocess import normalize
from mri_ds.data.synthesis.from_labels import apply, sample_params
from mri_ds.data.synthesis.label_map import LabelMap, LabelMaps
from mri_ds.data.variation import Variation
from mri_ds.errors import InputError

Box = tuple[slice, slice, slice]


class LabelMapSource:
    """Patches synthesised from label maps: index -> anatomy, dice -> everything else."""

    def __init__(self, data: DataConfig, tasks: Mapping[str, TaskConfig], *, num_channels: int, cache_bytes: int = 2**30) -> None:
        """Raises InputError for a folder without label maps, and for classes that the task of the shards does not have."""
        assert data.synthesis is not None and data.spacing_mm != "auto" and data.patch != "auto"
        if not data.synthesis.labels:
            raise InputError("data.synthesis.labels is not set", fix="give a folder of label maps")
        self.data, self.tasks, self.num_channels = data, dict(tasks), num_channels
        self.strengths: SynthesisConfig = data.synthesis
        self.spacing_mm: tuple[float, float, float] = data.spacing_mm
        self.patch: Triple = data.patch
        self.variation = Variation(data)
        self.maps = LabelMaps(self.strengths.labels, cache_bytes=cache_bytes)
        self.task = _task(self.strengths, tasks)
        self._class = _class_numbers(self.maps, self.tasks[self.task].classes, self.task)

    def __len__(self) -> int:
        return len(self.maps)

    def has_label(self, index: int, task: str) -> bool:
        """Whether samples of map `index` are labelled for `task`: all of them are, for one task."""
        return task == self.task

    def subject_id(self, index: int) -> str:
        return f"synthetic:{self.maps.name(index)}"

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """One synthetic patch of label map `index`: image, spacing_mm, targets (fillers for all tasks but one), subject_id.

        It is varied as a subject's patch is: see variation.py.
        """
        label_map = self.maps[index]
        centre_mm = self._centre_mm(rng, label_map)
        params = self.variation.draw(rng, spacing_mm=self.spacing_mm, num_channels=self.num_channels)
        window = window_of(params, [3 * n for n in self.patch], start=self.patch)
        image, labels = self._synthesize(rng, label_map, window.box, centre_mm)
        image, labels = self.variation.apply(image, labels, params, window, fill=float(image.min()), rng=rng)
        return {
            "image": image,
            "spacing_mm": torch.tensor(self.spacing_mm, dtype=torch.float32),
            "targets": {name: self._target(name, task, labels[self.task]) for name, task in self.tasks.items()},
            "subject_id": self.subject_id(index),
        }

    def _synthesize(
        self, rng: np.random.Generator, label_map: LabelMap, box: Box, centre_mm: np.ndarray
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Normalised image and labels in that box of a space of three patches along each axis, the middle one about `centre_mm`.

        So what a variation turns and bends in from beyond the patch is synthetic too.
        """
        p, q, r = (side.stop - side.start for side in box)
        middle = np.array([(side.start + side.stop) / 2 for side in box]) - 1.5 * np.array(self.patch)
        params = sample_params(
            rng,
            label_map,
            shape=(p, q, r),
            spacing_mm=self.spacing_mm,
            num_channels=self.num_channels,
            centre_mm=centre_mm + middle * self.spacing_mm,
            strengths=self.strengths,
            may_flip=self.maps.table.may_flip,
        )
        image, classes = apply(label_map, params)
        return torch.from_numpy(normalize(image.numpy(), self.data.clip_percentiles)), {self.task: classes}

    def _centre_mm(self, rng: np.random.Generator, label_map: LabelMap) -> np.ndarray:
        """The middle of the patch, which stays within the map where it can: anywhere, or about a voxel of a random class."""
        size, half = label_map.size_mm, np.array(self.patch) * self.spacing_mm / 2
        low = np.minimum(half, size / 2)
        centre = rng.uniform(low, size - low)
        if label_map.seats and rng.random() < self.data.foreground_prob:
            seats = label_map.seats[int(rng.integers(len(label_map.seats)))]
            centre = (seats[rng.integers(len(seats))] + 0.5) * label_map.spacing_mm
        return np.clip(centre, low, size - low)

    def _target(self, name: str, task: TaskConfig, classes: torch.Tensor) -> torch.Tensor:
        if name == self.task:
            return self._class.index_select(0, classes.flatten().int()).view(classes.shape)
        if task.kind == "segmentation":
            return torch.zeros(self.patch, dtype=torch.int64)
        return torch.tensor(0, dtype=torch.int64 if task.kind == "classification" else torch.float32)


class MixedSource:
    """Subjects of the shards and synthetic ones in one line, with the interface of both."""

    def __init__(self, real: PatchSource, synthetic: LabelMapSource | None) -> None:
        self.real, self.synthetic, self.tasks = real, synthetic, real.tasks
        self.num_real = len(real.dataset)
        self.num_synthetic = num_synthetic(self.num_real, synthetic.strengths) if synthetic is not None else 0

    def __len__(self) -> int:
        return self.num_real + self.num_synthetic

    def is_synthetic(self, index: int) -> bool:
        return index >= self.num_real

    def has_label(self, index: int, task: str) -> bool:
        """Whether the sample at `index` has a label for `task`; known without drawing it, so by every rank."""
        if self.synthetic is not None and self.is_synthetic(index):
            return self.synthetic.has_label(self._map(index), task)
        return self.real.dataset.has_label(index, task)

    def subject_id(self, index: int) -> str:
        if self.synthetic is not None and self.is_synthetic(index):
            return self.synthetic.subject_id(self._map(index))
        return self.real.dataset.subject_ids[index]

    def blank(self) -> dict[str, Any]:
        """See PatchSource.blank."""
        return self.real.blank()

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """See PatchSource.draw."""
        if self.synthetic is not None and self.is_synthetic(index):
            return self.synthetic.draw(self._map(index), rng)
        return self.real.draw(index, rng)

    def _map(self, index: int) -> int:
        assert self.synthetic is not None
        return (index - self.num_real) % len(self.synthetic)


def with_synthesis(
    real: PatchSource, data: DataConfig, tasks: Mapping[str, TaskConfig], *, num_channels: int, cache_bytes: int = 2**30
) -> MixedSource:
    """`real`, and where `data.synthesis` asks for them synthetic samples after it: the loader's one call.

    Its length is the epoch's; `has_label` and `draw` take indices of that length. Raises InputError as LabelMapSource does.

    >>> source = with_synthesis(PatchSource(...), data, tasks, num_channels=1)  # doctest: +SKIP
    """
    if data.synthesis is None:
        return MixedSource(real, None)
    return MixedSource(real, LabelMapSource(data, tasks, num_channels=num_channels, cache_bytes=cache_bytes))


def _task(strengths: SynthesisConfig, tasks: Mapping[str, TaskConfig]) -> str:
    maps = [name for name, task in tasks.items() if task.kind == "segmentation"]
    if strengths.task in maps:
        return strengths.task
    if strengths.task:
        what = f"data.synthesis.task = {strengths.task!r} is no segmentation task"
        raise InputError(what, fix=nearest(strengths.task, maps) if maps else "train a segmentation task, or leave synthesis out")
    if len(maps) != 1:
        what = f"data.synthesis.task is not set, and there are {len(maps)} segmentation tasks"
        raise InputError(what, fix=f"set it to one of {', '.join(maps)}" if maps else "leave data.synthesis out")
    return maps[0]


def _class_numbers(maps: LabelMaps, classes: list[str], task: str) -> torch.Tensor:
    """Class of the label table -> class of the task, by name; class 0 of both is the background. (n,) int64."""
    numbers = [0]
    for name in maps.table.classes[1:]:
        if name not in classes:
            what = f"class {name!r} is none of task {task!r}"
            raise InputError(what, where=maps.folder, fix=f"{nearest(name, classes)} Name the task's classes in labels.yaml")
        numbers.append(classes.index(name))
    return torch.tensor(numbers)
