"""Batches without end: the same ones whatever the number of ranks and workers, from any step on.

Axes: B subjects of one micro-batch, C channel, D H W voxels of the patch.
In: a ShardDataset.  Out: an iterator of Batch dictionaries.
Which subject stands at which position is told in order.py. Step k takes positions k G .. (k + 1) G (G the global batch); its
micro-batch m on rank r takes micro_batch of them from k G + m (micro_batch world_size) + r micro_batch on. Crops and augmentation
are drawn for a place of an epoch. So a batch is a function of its positions, and resuming means starting at another number.
"""

import logging
import signal
from collections.abc import Callable, Collection, Iterator, Mapping
from multiprocessing.util import Finalize
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mri_ds.config import DataConfig, TaskConfig, nearest
from mri_ds.data.index import ShardDataset
from mri_ds.data.order import Order, Slot, make_order
from mri_ds.data.patches import PatchSource
from mri_ds.data.processes import num_cores
from mri_ds.data.synthesis.source import MixedSource, with_synthesis
from mri_ds.errors import InputError
from mri_ds.sample import Batch

CACHE_BYTES = 2 * 2**30  # of prepared subjects per rank, shared out among its workers
MAX_WORKERS = 8
MAX_SKIPPED = 0.1  # of a split's subjects; a run that lost more has lost its data
LOG = logging.getLogger(__name__)


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
    order: Order | None = None,
    shown_tasks: Collection[str] | None = None,
    cache_bytes: int = CACHE_BYTES,
) -> Iterator[Batch]:
    """Micro-batches of `rank` from step `start_step` on, global_batch / (micro_batch world_size) of them per step, for ever.

    `data` has no "auto" left. `order` None is that of make_order; labels of tasks that are not among `shown_tasks` (None: all
    are) are masked. Raises InputError for a batch that the ranks cannot share evenly, an empty split, or a task that
    the shards hold with other classes or not at all; while iterating, for a subject that cannot be read, unless
    `data.skip_unreadable`: then its place has mask 0 for all tasks, a warning names it, and other subjects keep their weights.
    """
    if global_batch % (micro_batch * world_size):
        what = f"global_batch {global_batch} cannot be shared by {world_size} ranks in micro-batches of {micro_batch}"
        raise InputError(what, fix=f"make it a multiple of {micro_batch * world_size}")
    assert data.num_workers != "auto", "resolve `auto` with workers_per_rank first"
    order = order or make_order(dataset, data, seed=seed, global_batch=global_batch)
    _check_tasks(dataset, tasks)
    cache_bytes //= max(1, data.num_workers)
    source = PatchSource(dataset, data, tasks, cache_bytes=cache_bytes)
    mixed = with_synthesis(source, data, tasks, num_channels=len(dataset.manifest.channels), cache_bytes=cache_bytes // 2)
    loader: DataLoader[Any] = DataLoader(
        _Positions(mixed, order, set(tasks if shown_tasks is None else shown_tasks), skip_unreadable=data.skip_unreadable),
        batch_sampler=_MicroBatches(global_batch, micro_batch, rank, world_size, start_step),  # type: ignore[arg-type]
        num_workers=data.num_workers,
        collate_fn=_collate,
        worker_init_fn=_leave_signals_to_the_rank,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else the loader would draw from the global one, which dropout uses
    )
    return _batches(loader, dataset)


def workers_per_rank(num_ranks: int, *, beside_gpu: bool) -> int:
    """What `data.num_workers: auto` means on a node with `num_ranks` ranks: processes that read ahead while others compute.

    Beside a GPU as many as the rank's share of the cores leaves over, at most 8. Where the CPU itself computes, one: on two cores
    with two ranks of `small` it took the time spent waiting for data from 3 % of a step to 0.5 %, and made no step longer.
    """
    return max(1, min(MAX_WORKERS, num_cores() // num_ranks - 1)) if beside_gpu else 1


def _leave_signals_to_the_rank(worker: int) -> None:
    """A signal to a whole job is for its ranks to answer: they need batches until their step ends, and workers end with them."""
    for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_IGN)


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

    def __init__(self, source: MixedSource, order: Order, shown_tasks: Collection[str], *, skip_unreadable: bool) -> None:
        self.source, self.order, self.skip_unreadable = source, order, skip_unreadable
        self.presence = {
            task: np.array([task in shown_tasks and source.has_label(i, task) for i in range(len(source))])
            for task in source.tasks
        }

    def __getitem__(self, position: int) -> dict[str, Any]:
        slot = self.order.slot(position)
        try:
            patch = self.source.draw(slot.subject, self.order.dice(slot))
        except (InputError, OSError) as err:  # raised in a worker it would come back buried in a traceback: see _batches
            problem = _as_input_error(err)
            if not self.skip_unreadable:
                return {"error": problem}
            return {
                **self.source.blank(),
                "mask": self._mask(0.0),
                "skipped": (self.source.subject_id(slot.subject), str(problem)),
            }
        if slot.is_padding:
            return {**patch, "mask": self._mask(0.0), "subject_id": ""}
        weights = {task: self._weight(task, position, slot) for task in self.presence}
        return {**patch, "mask": {task: torch.tensor(weight) for task, weight in weights.items()}}

    def _mask(self, weight: float) -> dict[str, torch.Tensor]:
        return {task: torch.tensor(weight) for task in self.presence}

    def _weight(self, task: str, position: int, slot: Slot) -> float:
        """Batch.mask of one subject. Every rank knows from the index who in the global batch has a label: nobody need ask."""
        presence = self.presence[task]
        if not presence[slot.subject]:
            return 0.0
        return self.order.global_batch / int(presence[self.order.real(position // self.order.global_batch)].sum())


def _collate(items: list[dict[str, Any]]) -> tuple[Batch, list[tuple[str, str]]] | InputError:
    """The batch, and (subject, reason) of those that were skipped."""
    for item in items:
        if "error" in item:
            return item["error"]

    def by_task(key: str) -> dict[str, torch.Tensor]:
        return {task: torch.stack([item[key][task] for item in items]) for task in items[0][key]}

    batch = Batch(
        image=torch.stack([item["image"] for item in items]),
        spacing_mm=torch.stack([item["spacing_mm"] for item in items]),
        targets=by_task("targets"),
        mask=by_task("mask"),
        subject_id=[item["subject_id"] for item in items],
    )
    return batch, [item["skipped"] for item in items if "skipped" in item]


def _batches(loader: DataLoader[Any], dataset: ShardDataset) -> Iterator[Batch]:
    """Raises here, as it was, the InputError that a worker handed over; counts the subjects that were skipped."""
    skipped: set[str] = set()
    results: Any = _start_workers(loader)
    end_workers = _end_before_exit(results) if loader.num_workers else lambda: None
    try:
        for result in results:
            if isinstance(result, InputError):
                raise result
            batch, problems = result
            for subject_id, problem in problems:
                if subject_id not in skipped:
                    skipped.add(subject_id)
                    LOG.warning("left out %s: %s (%d of %d so far)", subject_id, problem, len(skipped), len(dataset))
                if len(skipped) > max(1, MAX_SKIPPED * len(dataset)):
                    what = f"{len(skipped)} of {len(dataset)} subjects cannot be read, the last because: {problem}"
                    raise InputError(what, fix="put the shards back")
            yield batch
    except RuntimeError as err:
        if "DataLoader worker" not in str(err):
            raise
        hint = "most likely for want of memory: lower data.num_workers or data.patch, or give the job more memory"
        raise RuntimeError(f"a process that loads data was killed, {hint}") from err
    finally:
        end_workers()


def _start_workers(loader: DataLoader[Any]) -> Iterator[Any]:
    """`iter(loader)`, without the handler by which PyTorch raises a worker's death from wherever the main thread is just then.

    Between two collectives, or while another failure is being told, nobody expects it. The next batch asked for tells it as well.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    results = iter(loader)
    if signal.getsignal(signal.SIGCHLD) is not handler:
        signal.signal(signal.SIGCHLD, handler)
    return results


def _end_before_exit(results: Any) -> Callable[[], object]:
    """Ends the workers of a DataLoader's iterator, now or else before Python ends what children are left.

    Python would send them SIGTERM, which they leave to the rank, and then wait for them for ever.
    """
    return Finalize(None, results._shutdown_workers, exitpriority=10)


def _as_input_error(err: InputError | OSError) -> InputError:
    """A shard that vanished or a disk that failed, in one line."""
    if isinstance(err, InputError):
        return err
    fix = "put the shard back and start again (the run goes on from its checkpoint), or set data.skip_unreadable=true"
    return InputError(f"cannot be read: {err.strerror or err}", where=err.filename or "", fix=fix)


def _check_tasks(dataset: ShardDataset, tasks: Mapping[str, TaskConfig]) -> None:
    for name, task in tasks.items():
        stored = dataset.tasks.get(name)
        if stored is None:
            raise InputError(f"task {name!r} is not in the shards", where=dataset.folder, fix=nearest(name, list(dataset.tasks)))
        if (stored.kind, stored.classes) != (task.kind, task.classes):
            what = f"task {name!r} is {stored.kind} {stored.classes} in the shards, {task.kind} {task.classes} in the config"
            raise InputError(what, where=dataset.folder, fix="correct the config, or shard the data again")
