"""Batches without end: the same ones whatever the number of ranks and workers, from any step on.

Axes: B subjects of one micro-batch, C channel, D H W voxels of the patch.
In: a ShardDataset.  Out: an iterator of Batch dictionaries.
Subjects stand in line by position: position p is subject epoch_order(n, seed, p // n)[p % n], so each epoch shows each one once.
Step k takes positions k G .. (k + 1) G (G the global batch); its micro-batch m on rank r takes micro_batch of them from
k G + m (micro_batch world_size) + r micro_batch on. Crops and augmentation of a position are drawn from (seed, position).
So a batch is a function of its positions, and resuming means starting at another number.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mri_ds.config import DataConfig, TaskConfig, nearest
from mri_ds.data.index import ShardDataset
from mri_ds.data.patches import PatchSource
from mri_ds.errors import InputError
from mri_ds.sample import Batch

CACHE_BYTES = 2 * 2**30  # of prepared subjects per rank, shared out among its workers
SHUFFLE = 0x5EED  # sets the dice of the shuffling apart from those of the positions


def make_loader(
    dataset: ShardDataset,
    data: DataConfig,
    tasks: Mapping[str, TaskConfig],
    *,
    seed: int,
    global_batch: int,
    micro_batch: int,
    rank: int,
    world_size: int,
    start_step: int = 0,
    cache_bytes: int = CACHE_BYTES,
) -> Iterator[Batch]:
    """Micro-batches of `rank` from step `start_step` on, global_batch / (micro_batch world_size) of them per step, for ever.

    `data` has no "auto" left. Raises InputError for a batch that the ranks cannot share evenly, an empty split, or a task that
    the shards hold with other classes or not at all.
    """
    if global_batch % (micro_batch * world_size):
        what = f"global_batch {global_batch} cannot be shared by {world_size} ranks in micro-batches of {micro_batch}"
        raise InputError(what, fix=f"make it a multiple of {micro_batch * world_size}")
    if not len(dataset):
        raise InputError(f"split {dataset.split!r} has no subject", where=dataset.folder, fix="shard more subjects")
    _check_tasks(dataset, tasks)
    source = PatchSource(dataset, data, tasks, cache_bytes=cache_bytes // max(1, data.num_workers))
    loader: DataLoader[Any] = DataLoader(
        _Positions(source, seed=seed, global_batch=global_batch),
        batch_sampler=_MicroBatches(global_batch, micro_batch, rank, world_size, start_step),  # type: ignore[arg-type]
        num_workers=data.num_workers,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else the loader would draw from the global one, which dropout uses
    )
    return _raising(loader)


def epoch_order(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the subjects in one epoch: a permutation of range(num_samples), (num_samples,) int64."""
    return np.random.default_rng([seed, epoch, SHUFFLE]).permutation(num_samples)


def position_to_sample(position: int, *, num_samples: int, seed: int) -> int:
    """The subject that stands at `position` of the concatenated epochs.

    >>> sorted(position_to_sample(p, num_samples=5, seed=7) for p in range(10, 15))
    [0, 1, 2, 3, 4]
    """
    epoch, place = divmod(position, num_samples)
    return int(_remembered_order(num_samples, seed, epoch)[place])


_remembered_order = lru_cache(maxsize=4)(epoch_order)


class _MicroBatches:
    """The positions of each micro-batch of one rank, without end: the sampler's half of the loader."""

    def __init__(self, global_batch: int, micro_batch: int, rank: int, world_size: int, start_step: int) -> None:
        self.first = start_step * global_batch + rank * micro_batch
        self.micro_batch, self.stride = micro_batch, micro_batch * world_size  # G is a multiple of it: steps leave no gap

    def __iter__(self) -> Iterator[list[int]]:
        first = self.first
        while True:
            yield list(range(first, first + self.micro_batch))
            first += self.stride


class _Positions(Dataset[dict[str, Any]]):
    """position -> the patch that stands there and the weights of its labels: the workers' half of the loader."""

    def __init__(self, source: PatchSource, *, seed: int, global_batch: int) -> None:
        self.source, self.seed, self.global_batch = source, seed, global_batch
        self.num_samples = len(source.dataset)
        self.presence = {
            task: np.array([source.dataset.has_label(i, task) for i in range(self.num_samples)]) for task in source.tasks
        }

    def __getitem__(self, position: int) -> dict[str, Any]:
        try:
            patch = self.source.draw(self._subject(position), np.random.default_rng([self.seed, position]))
        except InputError as err:  # raised in a worker it would come back buried in a traceback: see _raising
            return {"error": err}
        return {
            **patch,
            "mask": {task: torch.tensor(self._weight(task, position), dtype=torch.float32) for task in self.presence},
        }

    def _subject(self, position: int) -> int:
        return position_to_sample(position, num_samples=self.num_samples, seed=self.seed)

    def _weight(self, task: str, position: int) -> float:
        """Batch.mask of one subject. Every rank knows from the index who in the global batch has a label: nobody need ask."""
        presence = self.presence[task]
        if not presence[self._subject(position)]:
            return 0.0
        first = position - position % self.global_batch
        num_labels = sum(bool(presence[self._subject(p)]) for p in range(first, first + self.global_batch))
        return self.global_batch / num_labels


def _collate(items: list[dict[str, Any]]) -> Batch | InputError:
    for item in items:
        if "error" in item:
            return item["error"]

    def by_task(key: str) -> dict[str, torch.Tensor]:
        return {task: torch.stack([item[key][task] for item in items]) for task in items[0][key]}

    return Batch(
        image=torch.stack([item["image"] for item in items]),
        spacing_mm=torch.stack([item["spacing_mm"] for item in items]),
        targets=by_task("targets"),
        mask=by_task("mask"),
        subject_id=[item["subject_id"] for item in items],
    )


def _raising(batches: DataLoader[Any]) -> Iterator[Batch]:
    """Raises the InputError that a worker handed over, here and as it was."""
    for batch in batches:
        if isinstance(batch, InputError):
            raise batch
        yield batch


def _check_tasks(dataset: ShardDataset, tasks: Mapping[str, TaskConfig]) -> None:
    for name, task in tasks.items():
        stored = dataset.tasks.get(name)
        if stored is None:
            raise InputError(f"task {name!r} is not in the shards", where=dataset.folder, fix=nearest(name, list(dataset.tasks)))
        if (stored.kind, stored.classes) != (task.kind, task.classes):
            what = f"task {name!r} is {stored.kind} {stored.classes} in the shards, {task.kind} {task.classes} in the config"
            raise InputError(what, where=dataset.folder, fix="correct the config, or shard the data again")
