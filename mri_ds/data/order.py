"""Who is shown when: the subjects of every batch, as a pure function of (seed, epoch). Ranks and workers do not occur here.

An epoch has as many places as the split has subjects, and G places to a batch (G the global batch). The last batch of an epoch
is filled up with padding: places that repeat the batch's own subjects with all labels masked, so that every batch has G places,
every rank the same number of micro-batches, and no subject counts twice.
In: sizes and a seed.  Out: the Slot that a position stands for. Position p is place p % G of step p // G, counted over epochs.
The state of the whole loader is the number of steps done; the other integers of `state` are there to notice other data.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mri_ds.config import DataConfig, SynthesisConfig
from mri_ds.data.index import ShardDataset
from mri_ds.data.sampling import Groups, balanced, groups_by
from mri_ds.errors import InputError

SHUFFLE = 0x5EED  # sets the dice of the shuffling apart from those of the crops
CROP = 0xC309
KEPT_EPOCHS = 4


@dataclass(frozen=True)
class Slot:
    """One place of one batch."""

    epoch: int
    place: int  # in the epoch; from the number of subjects on it is padding
    subject: int
    is_padding: bool


class Order:
    """The order of one run. Cheap to copy into workers.

    shard_sizes: subjects of each shard, in the split's order. window: shards that are shuffled together, 0 for all; with fewer,
    the batches of a while come from few shards. groups: see sampling.groups_by; () shows every subject once per epoch.

    >>> order = Order(shard_sizes=[3, 2], global_batch=4, seed=7)
    >>> order.steps_per_epoch, sorted(order.real(0) + order.real(1))
    (2, [0, 1, 2, 3, 4])
    """

    def __init__(
        self,
        *,
        shard_sizes: Sequence[int],
        global_batch: int,
        seed: int,
        window: int = 0,
        groups: Groups = (),
        identity: int = 0,
    ) -> None:
        self.shard_sizes, self.window, self.groups = tuple(shard_sizes), window, groups
        self.num_samples, self.global_batch, self.seed, self.identity = sum(shard_sizes), global_batch, seed, identity
        self._epochs: dict[int, np.ndarray] = {}

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_samples // self.global_batch)

    def epoch(self, number: int) -> np.ndarray:
        """Subjects of one epoch in order, (num_samples,) int64."""
        if number not in self._epochs:
            if len(self._epochs) >= KEPT_EPOCHS:
                del self._epochs[next(iter(self._epochs))]
            if self.groups:
                order = balanced(self.groups, self.num_samples, seed=self.seed, epoch=number)
            else:
                order = shuffled(self.shard_sizes, seed=self.seed, epoch=number, window=self.window)
            self._epochs[number] = order
        return self._epochs[number]

    def slot(self, position: int) -> Slot:
        step, number = divmod(position, self.global_batch)
        epoch, batch = divmod(step, self.steps_per_epoch)
        first = batch * self.global_batch
        size = min(self.global_batch, self.num_samples - first)
        subject = int(self.epoch(epoch)[first + number % size])
        return Slot(epoch, first + number, subject, is_padding=number >= size)

    def real(self, step: int) -> list[int]:
        """The subjects of global batch `step` less padding."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        return self.epoch(epoch)[batch * self.global_batch : (batch + 1) * self.global_batch].tolist()

    def dice(self, slot: Slot) -> np.random.Generator:
        """What the crop and the augmentation of a place are drawn from: the same for any world, another in every epoch."""
        return np.random.default_rng([self.seed, slot.epoch, slot.place, CROP])

    def state(self, step: int) -> dict[str, int]:
        """After `step` steps: what a checkpoint keeps of the data."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        return {"step": step, "epoch": epoch, "batch": batch, **self._facts()}

    def check(self, state: Mapping[str, int]) -> None:
        """Raises InputError where `state` was kept of another order: going on would show subjects twice or not at all."""
        for name, value in self._facts().items():
            if name in state and state[name] != value:
                what = "the shards hold other subjects, or in another order" if name == "identity" else f"{name} is {value}"
                now = "" if name == "identity" else f" and was {state[name]}"
                raise InputError(
                    f"{what}{now} when the checkpoint was written", fix="train on the same data, or in a new run folder"
                )

    def _facts(self) -> dict[str, int]:
        return {
            "seed": self.seed,
            "global_batch": self.global_batch,
            "num_samples": self.num_samples,
            "identity": self.identity,
        }


def make_order(dataset: ShardDataset, data: DataConfig, *, seed: int, global_batch: int) -> Order:
    """The order in which `dataset` is shown. Raises InputError for an empty split or a balance that it cannot have."""
    if not len(dataset):
        raise InputError(f"split {dataset.split!r} has no subject", where=dataset.folder, fix="shard more subjects")
    groups = groups_by(dataset, data.balance)
    if groups and data.shuffle_shards:
        raise InputError("data.balance and data.shuffle_shards exclude each other", fix="leave one of them out")
    extra = num_synthetic(len(dataset), data.synthesis)
    if extra and (groups or data.shuffle_shards):
        what = "data.synthesis excludes data.balance and data.shuffle_shards"
        raise InputError(what, fix="leave one of them out")
    told = json.dumps([dataset.subject_ids, data.balance, data.shuffle_shards]).encode()
    return Order(
        shard_sizes=[*dataset.shard_sizes, extra] if extra else dataset.shard_sizes,
        global_batch=global_batch,
        seed=seed,
        window=data.shuffle_shards,
        groups=groups,
        identity=int.from_bytes(hashlib.sha256(told).digest()[:7], "big"),  # 56 bits: whole in JSON's numbers, too
    )


def num_synthetic(num_real: int, synthesis: SynthesisConfig | None) -> int:
    """Places of an epoch that synthetic samples take, after the `num_real` subjects: their share of all, at least one."""
    return max(1, round(num_real * synthesis.share / (1 - synthesis.share))) if synthesis is not None else 0


def shuffled(shard_sizes: Sequence[int], *, seed: int, epoch: int, window: int = 0) -> np.ndarray:
    """A permutation of all subjects, (num_samples,) int64: shards in random order, `window` of them shuffled together.

    A subject stands at a place of its window with equal chances; with window 0 that is any place of the epoch.
    """
    rng = np.random.default_rng([seed, epoch, SHUFFLE])
    if not 0 < window < len(shard_sizes):
        return rng.permutation(sum(shard_sizes))
    ends = np.cumsum(shard_sizes)
    shards = rng.permutation(len(shard_sizes))
    together = [shards[i : i + window] for i in range(0, len(shards), window)]
    parts = [np.concatenate([np.arange(ends[s] - shard_sizes[s], ends[s]) for s in some]) for some in together]
    return np.concatenate([rng.permutation(part) for part in parts])


def chain(digest: str, subject_ids: Sequence[str]) -> str:
    """The digest of a run's batches so far ("" at the start), lengthened by one more global batch.

    >>> chain("", ["a", "b"]) == chain("", ["b", "a"])
    False
    """
    return hashlib.sha256(json.dumps([digest, list(subject_ids)]).encode()).hexdigest()
