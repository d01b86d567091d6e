"""The samples of one split by number: any of them, whole or a box of it, without unpacking or scanning tars.

Axes: C channel, D H W voxels.  In: a folder of shards, here or at a URL.  Out: Samples, each read by byte range.
"""

import functools
import math
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from mri_ds.config import TaskConfig, nearest
from mri_ds.data.ahead import Work, read_together
from mri_ds.data.chunk_plan import Layout
from mri_ds.data.chunks import Piece, ReadAt, box_in_pieces, decode_array, read_layout
from mri_ds.data.entries import ShardEntry, index_path, load_index, read_meta, scan_shard
from mri_ds.data.foreground import places_to_voxels
from mri_ds.data.manifest import Manifest, read_manifest
from mri_ds.data.members import FIX, IMAGE, PLACES, SampleMeta, check_shape, label_member, make_sample
from mri_ds.data.remote import locate
from mri_ds.data.tars import member_reader, open_tar
from mri_ds.errors import CorruptError, InputError
from mri_ds.sample import Sample

__all__ = ["ShardDataset", "ShardEntry", "index_path", "load_index", "scan_shard"]

FLOAT_BYTES = 4
AHEAD_BYTES = 256 * 2**20  # of images begun beside the one that is asked for
BIDS_VISIT = re.compile(r"^(sub-[A-Za-z0-9]+)_(?:ses|run)-.*$")
KEPT_HEADS = 512  # samples whose meta.json and chunk tables stay in memory: some 100 kB each for a large volume


class ShardDataset:
    """The samples of one split, in the order of its shards. Holds no open file: safe to copy into worker processes.

    >>> dataset = ShardDataset(Path("shards"), "train")  # doctest: +SKIP
    >>> dataset.read(0)["image"].shape, dataset.read_crop(0, (4, 8, 0), (16, 16, 16))["image"].shape  # doctest: +SKIP
    ((1, 36, 50, 35), (1, 16, 16, 16))
    """

    def __init__(self, folder: str | Path, split: str) -> None:
        """Raises InputError for a folder without shards, an unknown split, or shards that contradict their index."""
        self.folder = locate(folder)
        self.manifest: Manifest = read_manifest(self.folder)
        if split not in self.manifest.splits:
            raise InputError(f"no split {split!r}", where=self.folder, fix=nearest(split, list(self.manifest.splits)))
        self.split = split
        self.num_corrupt = 0  # samples that `samples` went past
        self._entries = [
            (self.folder / name, entry) for name in self.manifest.splits[split].shards for entry in load_index(self.folder / name)
        ]
        self._heads: OrderedDict[tuple[int, str], Any] = OrderedDict()
        self._check_entries()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def tasks(self) -> dict[str, TaskConfig]:
        return self.manifest.tasks

    @property
    def subject_ids(self) -> list[str]:
        return [entry.subject_id for _, entry in self._entries]

    @property
    def shard_sizes(self) -> list[int]:
        """Number of samples in each shard, in order."""
        return list(Counter(shard for shard, _ in self._entries).values())

    # ---- known from the index alone ----------------------------------------------------------------------------------

    def has_label(self, index: int, task: str) -> bool:
        """Whether sample `index` has a label for `task`."""
        return task in self._entries[index][1].tasks

    def value(self, index: int, task: str) -> int | float | None:
        """Class index or regression target of sample `index`, or None."""
        return self._entries[index][1].values.get(task)

    def site(self, index: int) -> str | None:
        """The study's code of where sample `index` was scanned, or None."""
        return self._entries[index][1].site or None

    def patient(self, index: int) -> str:
        """Whose sample `index` is: a name that the samples of one patient share.

        Shards from before patients were kept name the sessions of a BIDS patient alike: sub-01_ses-1, sub-01_ses-2.
        """
        entry = self._entries[index][1]
        return entry.patient or BIDS_VISIT.sub(r"\1", entry.subject_id)

    def shape(self, index: int) -> tuple[int, int, int, int]:
        """C D H W of sample `index` on its stored grid."""
        return self._entries[index][1].shape

    # ---- known without reading voxels --------------------------------------------------------------------------------

    def meta(self, index: int) -> SampleMeta:
        """Affine, spacing, and of each channel what normalising and padding need: see intensity.ChannelIntensity."""
        with open_tar(self._entries[index][0]) as read_at:
            return self._meta(index, read_at)

    def foreground(self, index: int, task: str) -> list[np.ndarray]:
        """foreground.foreground_voxels of the stored label map: (n, 3) for each class that occurs; [] without that label."""
        shard, entry = self._entries[index]
        name = label_member(task, PLACES)
        if name not in entry.members:
            return []
        with open_tar(shard) as read_at:
            where = f"{shard}: {entry.key}.{name}"
            member = self._member(index, name, read_at)
            places = decode_array(member(0, entry.members[name][1]), where=where)
        if places.ndim != 2 or len(places) != 2 or places.dtype != np.int32:
            raise InputError("is no list of places", where=where, fix=FIX)
        extent = entry.shape[1:]
        if places.size and not (places.min() >= 0 and places[1].max() < np.prod(extent, dtype=np.int64)):
            raise InputError("names places outside the volume", where=where, fix=FIX)
        return places_to_voxels(places, extent)

    # ---- voxels ------------------------------------------------------------------------------------------------------

    def read(self, index: int, *, tasks: Collection[str] | None = None) -> Sample:
        """Sample `index`, decoded: image (C, D, H, W) float32, label maps (D, H, W) int16; labels of `tasks` alone.

        Raises CorruptError where bytes fail their checksum, InputError where the tar is not what its index says.
        """
        return self.read_crop(index, (0, 0, 0), self.shape(index)[1:], tasks=tasks)

    def read_crop(
        self, index: int, start: Sequence[int], shape: Sequence[int], *, tasks: Collection[str] | None = None
    ) -> Sample:
        """The box of `shape` voxels from voxel `start` on, image and labels; only the chunks that it touches are read.

        The affine is that of the box. Raises what `read` does, and ValueError for a box that is not inside the volume.
        """
        with open_tar(self._entries[index][0]) as read_at:
            finish, pieces = self._in_pieces(index, start, shape, tasks, read_at)
            for piece in pieces:
                piece(read_at)
        return finish()

    def read_many(
        self, indices: Sequence[int], *, tasks: Collection[str] | None = None, num_threads: int = 0
    ) -> Iterator[Sample]:
        """What `read` gives for each of `indices`, in that order, by threads that share the work on each sample.

        So the first is there soon, and of large samples one is in memory beside the one in use and the one in work; 0 threads
        read when asked. Raises what `read` does, where that sample would stand.
        """

        def begin(index: int) -> Work[Sample]:
            shard = self._entries[index][0]
            with open_tar(shard) as read_at:
                finish, pieces = self._in_pieces(index, (0, 0, 0), self.shape(index)[1:], tasks, read_at)

            def run(piece: Piece) -> None:
                with open_tar(shard) as read_at:
                    piece(read_at)

            return finish, [functools.partial(run, piece) for piece in pieces]

        largest = max((FLOAT_BYTES * math.prod(self.shape(index)) for index in indices), default=1)
        return read_together(begin, indices, num_threads, num_ahead=max(1, min(num_threads, AHEAD_BYTES // largest)))

    def samples(self, *, skip_corrupt: bool = False) -> Iterator[Sample]:
        """All samples in order. With `skip_corrupt` those that fail a checksum are left out and counted in `num_corrupt`."""
        for index in range(len(self)):
            try:
                sample = self.read(index)
            except CorruptError:
                if not skip_corrupt:
                    raise
                self.num_corrupt += 1
                continue
            yield sample

    def _in_pieces(
        self, index: int, start: Sequence[int], shape: Sequence[int], tasks: Collection[str] | None, read_at: ReadAt
    ) -> tuple[Callable[[], Sample], list[Piece]]:
        """What gives the box of sample `index`, once the pieces of work beside it are done, in any order."""
        entry = self._entries[index][1]
        wanted = [task for task in self.tasks if tasks is None or task in tasks]
        meta = self._meta(index, read_at)
        image, pieces = self._box(index, IMAGE, meta.shape, start, shape, read_at, np.float32)
        labels = {}
        for task in wanted:
            if (name := label_member(task)) in entry.members:
                label, more = self._box(index, name, meta.shape[1:], start, shape, read_at, np.int16)
                labels[task], pieces = label[0], pieces + more

        def finish() -> Sample:
            sample = make_sample(meta, image, labels, start)
            sample["targets"] = {task: target for task, target in sample["targets"].items() if task in wanted}
            return sample

        return finish, pieces

    def _box(
        self,
        index: int,
        name: str,
        told: Sequence[int],
        start: Sequence[int],
        shape: Sequence[int],
        read_at: ReadAt,
        dtype: type[np.generic],
    ) -> tuple[np.ndarray, list[Piece]]:
        """(C, *shape) of one array member, a label map is one channel; and the work that fills it, given the whole tar."""
        shard, entry = self._entries[index]
        where = f"{shard}: {entry.key}.{name}"
        offset, size = entry.members[name]

        def load() -> Layout:
            layout = read_layout(self._member(index, name, read_at), size, where=where)
            check_shape(layout.shape, told, where=where)
            return layout

        layout = self._kept(index, name, load)
        box, pieces = box_in_pieces(layout, start, shape, dtype=np.dtype(dtype), where=where)

        def run(piece: Piece, read_at: ReadAt) -> None:
            piece(lambda begin, count: read_at(offset + begin, count))

        return box, [functools.partial(run, piece) for piece in pieces]

    def _meta(self, index: int, read_at: ReadAt) -> SampleMeta:
        shard, entry = self._entries[index]

        def load() -> SampleMeta:
            meta = read_meta(read_at, shard, entry.key, entry.members, entry.checksums)
            if (meta.subject_id, meta.shape, meta.values) != (entry.subject_id, entry.shape, entry.values):
                raise InputError(
                    f"sample {entry.key} is not the one its index tells of", where=shard, fix="delete its index file"
                )
            return meta

        return self._kept(index, "", load)

    def _member(self, index: int, name: str, read_at: ReadAt) -> ReadAt:
        shard, entry = self._entries[index]
        return member_reader(read_at, f"{entry.key}.{name}", entry.members[name], where=str(shard))

    def _kept(self, index: int, name: str, load: Callable[[], Any]) -> Any:
        """What was read and checked once for (sample, member), for the next crop of it."""
        found = self._heads.get((index, name))
        if found is None:
            found = self._heads[index, name] = load()
        with suppress(KeyError):  # of another thread that reads too
            self._heads.move_to_end((index, name))
            if len(self._heads) > KEPT_HEADS:
                self._heads.popitem(last=False)
        return found

    def _check_entries(self) -> None:
        told = self.manifest.splits[self.split].num_samples
        if len(self) != told:
            raise InputError(
                f"split {self.split!r} holds {len(self)} samples, its manifest says {told}", where=self.folder, fix=FIX
            )
        seen: set[str] = set()
        for shard, entry in self._entries:
            if entry.subject_id in seen:
                raise InputError(f"subject {entry.subject_id!r} stands in split {self.split!r} twice", where=shard, fix=FIX)
            seen.add(entry.subject_id)
