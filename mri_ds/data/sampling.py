"""Balance: every class, site or task is shown as often as the others, however many subjects it has.

In: a ShardDataset's index (no voxels) and what to balance by.  Out: groups of subjects, and epochs dealt evenly from them.
Within a group each subject comes up once before any comes up twice, from epoch to epoch without a break; so a group with fewer
subjects than its share repeats them evenly, and a larger one shows other subjects in the next epoch.
Voxel classes are balanced elsewhere: a crop is centred on each class of a label map alike (patches.window_start).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mri_ds.config import nearest
from mri_ds.errors import InputError

if TYPE_CHECKING:
    from mri_ds.data.index import ShardDataset

Groups = tuple[tuple[int, ...], ...]
GROUP = 0x6809  # sets these dice apart from those of crops and of the shuffled order
DEAL = 0xDEA1


def groups_by(dataset: "ShardDataset", balance: str) -> Groups:
    """The groups among which an epoch is shared evenly: () for "none".

    "task": those that have a label of one task; a subject with labels of several stands in several groups. "site": those of one
    site. The name of a classification task: those of one class; subjects without that label are a group of their own.
    Raises InputError for another name, or where there is but one group to choose from.
    """
    if balance == "none":
        return ()
    every = range(len(dataset))
    if balance == "task":
        groups = [tuple(i for i in every if dataset.has_label(i, task)) for task in dataset.tasks]
        groups.append(tuple(i for i in every if not any(dataset.has_label(i, task) for task in dataset.tasks)))
    else:
        names: list[Any] = _sites(dataset) if balance == "site" else _classes(dataset, balance)
        groups = [tuple(i for i in every if names[i] == name) for name in sorted(set(names))]
    groups = [group for group in groups if group]
    if len(groups) < 2:
        what = f"data.balance is {balance!r}, and all subjects of split {dataset.split!r} are of one {balance}"
        raise InputError(what, where=dataset.folder, fix="set data.balance=none")
    return tuple(groups)


def balanced(groups: Sequence[Sequence[int]], num_places: int, *, seed: int, epoch: int) -> np.ndarray:
    """An epoch of `num_places` subjects, (num_places,) int64: the groups' shares differ by one place at most.

    >>> sorted(balanced([[0, 1, 2, 3], [4]], 6, seed=0, epoch=0).tolist())[3:]
    [4, 4, 4]
    """
    share, rest = divmod(num_places, len(groups))
    parts = [
        _run_of(np.array(group), share + (number < rest), seed=seed, epoch=epoch, number=number)
        for number, group in enumerate(groups)
    ]
    return np.random.default_rng([seed, epoch, DEAL]).permutation(np.concatenate(parts))


def _run_of(group: np.ndarray, count: int, *, seed: int, epoch: int, number: int) -> np.ndarray:
    """Places epoch count .. (epoch + 1) count of the group's own endless line: one shuffled round after another."""
    first, last = epoch * count, (epoch + 1) * count
    rounds = range(first // len(group), -(-last // len(group)))
    line = [np.random.default_rng([seed, number, turn, GROUP]).permutation(group) for turn in rounds]
    start = first - rounds.start * len(group)
    return np.concatenate([*line, group[:0]])[start : start + count]


def _sites(dataset: "ShardDataset") -> list[str]:
    site = getattr(dataset, "site", None)
    names = [site(i) for i in range(len(dataset))] if site else []
    if not any(names):
        raise InputError("the shards name no sites", where=dataset.folder, fix="set data.balance=none, or shard with sites")
    return [name or "" for name in names]


def _classes(dataset: "ShardDataset", task: str) -> list[int]:
    known = [name for name, config in dataset.tasks.items() if config.kind == "classification"]
    if task not in known:
        what = f"data.balance is {task!r}, which is no classification task"
        raise InputError(what, where=dataset.folder, fix=nearest(task, ["none", "task", "site", *known]))
    values = [dataset.value(i, task) for i in range(len(dataset))]
    return [-1 if value is None else int(value) for value in values]
