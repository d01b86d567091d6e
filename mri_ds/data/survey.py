"""What a dataset is like, before it is sharded: a look at some of its subjects, told as the manifest of its shards would be.

In: a dataset's folder or table, or a folder of shards.  Out: a Survey.  Lengths in mm, canonical orientation.
Shards know everything about their subjects. Of a dataset as it is, LOOKED_AT subjects are read whole, evenly spaced over the
list: enough for medians and rough shares of classes; values of tables are counted over all.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mri_ds.config import TaskConfig
from mri_ds.data.fingerprint import Summary, fingerprint
from mri_ds.data.images import read_label
from mri_ds.data.layouts import Dataset, SubjectFiles, find_dataset, load_subject
from mri_ds.data.manifest import FORMAT_VERSION, MANIFEST, Manifest, read_manifest, with_statistics
from mri_ds.data.preprocess import to_canonical
from mri_ds.data.remote import locate
from mri_ds.data.shards import summarize_subject
from mri_ds.errors import InputError

LOOKED_AT = 16
TRAIN_SHARE = 0.8  # what `mri-ds shard` leaves for training unless told otherwise

Progress = Callable[[int, int], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Survey:
    """`manifest` holds grid, channels, tasks and their statistics; without shards it has no splits."""

    where: Path
    manifest: Manifest
    num_train: int
    num_subjects: int
    num_looked_at: int
    problems: list[str]

    @property
    def is_shards(self) -> bool:
        return bool(self.manifest.splits)


def survey(where: Path, layout: str = "auto", progress: Progress | None = None) -> Survey:
    """Raises InputError for what is neither shards nor a dataset, NamesMissing where classes have no names."""
    if layout == "auto" and ("://" in str(where) or (where / MANIFEST).is_file()):
        return _of_shards(where)
    dataset = find_dataset(where, layout)
    summaries, problems = _look(dataset, progress)
    values = [_summary_of_values(subject, dataset.tasks) for subject in dataset.subjects]
    maps = {name: task for name, task in dataset.tasks.items() if task.kind == "segmentation"}
    told = with_statistics(maps, summaries)
    told |= with_statistics({name: task for name, task in dataset.tasks.items() if name not in maps}, values)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        layout=dataset.layout,
        channels=dataset.channels,
        tasks={name: told[name] for name in dataset.tasks},
        splits={},
        fingerprint=fingerprint(summaries),
    )
    num = len(dataset.subjects)
    problems = [*problems, *dataset.problems]
    return Survey(where, manifest, max(1, round(TRAIN_SHARE * num)), num, len(summaries), problems)


def highest_label(paths: Sequence[Path]) -> int:
    """Of some of a task's label maps: its classes are 0 to this, as far as LOOKED_AT of them tell."""
    return max(int(read_label(path).voxels.max(initial=0)) for path in _some(paths))


def _of_shards(where: Path) -> Survey:
    manifest = read_manifest(locate(where))
    num = sum(split.num_samples for split in manifest.splits.values())
    train = manifest.splits["train"].num_samples if "train" in manifest.splits else num
    return Survey(where, manifest, train, num, num, list(manifest.skipped))


def _look(dataset: Dataset, progress: Progress | None) -> tuple[list[Summary], list[str]]:
    """Of some subjects. One that cannot be read is a problem; where none can, the first one's error is raised."""
    chosen = _some(dataset.subjects)
    summaries, problems, first = [], [], None
    for number, files in enumerate(chosen):
        try:
            sample = to_canonical(load_subject(files, dataset.tasks, notes=[]))
            summaries.append(summarize_subject(sample, dataset.tasks))
        except InputError as err:
            first = first or err
            problems.append(f"{files.subject_id}: {err}")
        if progress is not None:
            progress(number + 1, len(chosen))
    if not summaries:
        raise first or InputError("holds no subject", fix="give a dataset with images")
    return summaries, problems


def _summary_of_values(files: SubjectFiles, tasks: Mapping[str, TaskConfig]) -> Summary:
    """What tables say of one subject, without its voxels."""
    values: dict[str, int | float] = {}
    for name, value in files.values.items():
        values[name] = tasks[name].classes.index(value) if isinstance(value, str) else value
    return Summary(shape=(1, 1, 1), spacing_mm=(1.0, 1.0, 1.0), voxels_per_class={}, values=values)


def _some(items: Sequence[T]) -> list[T]:
    """At most LOOKED_AT, evenly spaced."""
    step = max(1.0, len(items) / LOOKED_AT)
    return [items[int(i * step)] for i in range(min(LOOKED_AT, len(items)))]
