"""Five ways to load labelled volumes, each as its documentation recommends; the same subjects and the same work.

Axes: C channel, D H W voxels in canonical (RAS+) orientation.
The work: image (C, D, H, W) float32 and label maps (D, H, W) int16 as tensors; whole, or one box of `patch` voxels at a random
place. Nothing is resampled or normalised.
In: a Job.  Out: a function that gives one epoch of items, the number of image voxels of each.
Sources: nibabel's "Working with NIfTI images" (slicer) and PyTorch's DataLoader; webdataset's README (WebDataset, WebLoader,
decode in the workers, batch_size None); MONAI's fast-training guide (CacheDataset with a ThreadDataLoader without workers) and
its documentation of PersistentDataset (deterministic transforms cached, random ones after).
"""

import functools
import gzip
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mri_ds.config import DataConfig, TaskConfig
from mri_ds.data.ahead import read_ahead
from mri_ds.data.layouts import SubjectFiles
from mri_ds.sample import Sample

Epoch = Callable[[], Iterator[tuple[int, float]]]


@dataclass(frozen=True)
class Job:
    """What every contender is given. `patch` None: whole volumes."""

    subjects: list[SubjectFiles]
    tasks: dict[str, TaskConfig]
    shards: Path  # of mri_ds
    tars: list[str]  # webdataset's, of .nii.gz members
    cache: Path  # for what a contender keeps on disk
    patch: tuple[int, int, int] | None
    num_workers: int

    @property
    def maps(self) -> list[str]:
        return [name for name, task in self.tasks.items() if task.kind == "segmentation"]


def ours(job: Job) -> Epoch:
    """Shards, read by byte range, of a crop only its chunks; ahead of time, by as many threads as others have processes.

    Crops by one at most: each is many small steps, between which two threads would mostly wait for Python's lock.
    """
    from mri_ds.data.index import ShardDataset

    dataset = ShardDataset(job.shards, "train")

    def tensors(sample: Sample) -> Any:
        maps = {name: torch.from_numpy(sample["targets"][name]) for name in job.maps if name in sample["targets"]}
        return torch.from_numpy(sample["image"]), maps

    def crop(index: int, patch: tuple[int, int, int]) -> Any:
        shape = dataset.shape(index)[1:]
        return tensors(dataset.read_crop(index, _start(shape, patch), _size(shape, patch)))

    def read(indices: list[int]) -> Iterator[Any]:
        if job.patch:
            return read_ahead(functools.partial(crop, patch=job.patch), indices, min(job.num_workers, 1))
        return map(tensors, dataset.read_many(indices, num_threads=job.num_workers))

    return _epochs(_Shuffled(read, len(dataset)))


def ours_in_training(job: Job) -> Epoch:
    """The loader of `mri-ds train`: as above, and on one grid, normalised, kept in memory."""
    from mri_ds.data.index import ShardDataset
    from mri_ds.data.loader import make_loader

    assert job.patch is not None, "it shows patches only"
    dataset = ShardDataset(job.shards, "train")
    data = DataConfig(
        spacing_mm=dataset.manifest.fingerprint.median_spacing_mm, patch=job.patch, augment=None, num_workers=job.num_workers
    )
    batches = make_loader(dataset, data, job.tasks, seed=0, global_batch=1, micro_batch=1, rank=0, world_size=1)

    def epoch() -> Iterator[tuple[int, float]]:
        for batch in itertools.islice(batches, len(dataset)):
            yield batch["image"].numel(), 0.0

    return epoch


def nibabel_files(job: Job) -> Epoch:
    """.nii.gz files by nibabel in a DataLoader; crops by its slicer."""
    import nibabel as nib

    def load(path: Path, box: Any, dtype: type) -> np.ndarray:
        image: Any = nib.load(path)
        image = nib.as_closest_canonical(image.slicer[box] if box else image)
        return np.asarray(image.dataobj, dtype=dtype)

    def item(index: int) -> Any:
        files = job.subjects[index]
        first: Any = nib.load(files.images[0])
        shape = first.shape
        box = _box(shape, job.patch) if job.patch else None
        image = np.stack([load(path, box, np.float32) for path in files.images])
        return torch.from_numpy(image), {name: torch.from_numpy(load(files.labels[name], box, np.int16)) for name in job.maps}

    return _epochs(_torch_loader(_Items(item, len(job.subjects)), job))


def webdataset_tars(job: Job) -> Epoch:
    """webdataset's own pipeline on tars of .nii.gz members."""
    import nibabel as nib
    import webdataset

    def item(raw: dict[str, Any]) -> Any:
        def load(name: str, dtype: type) -> np.ndarray:
            image = nib.as_closest_canonical(nib.Nifti1Image.from_bytes(gzip.decompress(raw[name])))
            return np.asarray(image.dataobj, dtype=dtype)

        names = sorted(name for name in raw if name.startswith("image"))
        image = np.stack([load(name, np.float32) for name in names])
        maps = {name: load(f"label-{number}.nii.gz", np.int16) for number, name in enumerate(job.maps)}
        if job.patch:
            box = _box(image.shape[1:], job.patch)
            image, maps = image[(slice(None), *box)].copy(), {name: label[box].copy() for name, label in maps.items()}
        return torch.from_numpy(image), {name: torch.from_numpy(label) for name, label in maps.items()}

    pipeline = webdataset.WebDataset(job.tars, shardshuffle=len(job.tars), empty_check=False).shuffle(8).map(item)
    workers = min(job.num_workers, len(job.tars))
    return _epochs(webdataset.WebLoader(pipeline, batch_size=None, num_workers=workers, persistent_workers=workers > 0))


def monai_cache(job: Job) -> Epoch:
    """MONAI's CacheDataset: every subject in memory before the first batch."""
    from monai.data import CacheDataset, ThreadDataLoader

    dataset = CacheDataset(_monai_items(job), _monai_transform(job), num_workers=max(1, job.num_workers), progress=False)
    return _monai_epochs(ThreadDataLoader(dataset, batch_size=1, shuffle=True, num_workers=0))


def monai_persistent(job: Job) -> Epoch:
    """MONAI's PersistentDataset: every subject as a tensor on disk from its first use on."""
    from monai.data import DataLoader as MonaiLoader
    from monai.data import PersistentDataset

    dataset = PersistentDataset(_monai_items(job), _monai_transform(job), cache_dir=job.cache)
    options = {"num_workers": job.num_workers, "persistent_workers": job.num_workers > 0}
    return _monai_epochs(MonaiLoader(dataset, batch_size=1, shuffle=True, **options))


CONTENDERS: dict[str, Callable[[Job], Epoch]] = {
    "mri_ds": ours,
    "mri_ds in training": ours_in_training,
    "nibabel .nii.gz": nibabel_files,
    "webdataset .nii.gz": webdataset_tars,
    "MONAI CacheDataset": monai_cache,
    "MONAI PersistentDataset": monai_persistent,
}
CROPS_ONLY = {"mri_ds in training"}


class _Shuffled:
    """Items in a random order, anew for each epoch."""

    def __init__(self, read: Callable[[list[int]], Iterator[Any]], length: int) -> None:
        self.read, self.length = read, length

    def __iter__(self) -> Iterator[Any]:
        return self.read(torch.randperm(self.length).tolist())


class _Items(Dataset[Any]):
    """Number -> item, by a function."""

    def __init__(self, item: Callable[[int], Any], length: int) -> None:
        self.item, self.length = item, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return self.item(index)


def _torch_loader(items: _Items, job: Job) -> DataLoader[Any]:
    return DataLoader(items, batch_size=None, shuffle=True, num_workers=job.num_workers, persistent_workers=job.num_workers > 0)


def _epochs(loader: Any) -> Epoch:
    def epoch() -> Iterator[tuple[int, float]]:
        for image, _ in loader:
            yield image.numel(), float(image[0, 0, 0, 0])

    return epoch


def _monai_epochs(loader: Any) -> Epoch:
    def epoch() -> Iterator[tuple[int, float]]:
        for batch in loader:
            image = batch["image"]
            yield image.numel(), float(image[0, 0, 0, 0, 0])

    return epoch


def _monai_items(job: Job) -> list[dict[str, Any]]:
    return [{"image": files.images, **{name: files.labels[name] for name in job.maps}} for files in job.subjects]


def _monai_transform(job: Job) -> Any:
    from monai import transforms as t

    keys = ["image", *job.maps]
    steps = [
        t.LoadImaged(keys, ensure_channel_first=True),
        t.Orientationd(keys, axcodes="RAS", labels=None),
        t.EnsureTyped(keys, dtype=[torch.float32] + [torch.int16] * len(job.maps), track_meta=False),
    ]
    if job.patch:
        steps.append(t.RandSpatialCropd(keys, roi_size=job.patch, random_size=False))
    return t.Compose(steps)


def _size(shape: Any, patch: tuple[int, int, int]) -> tuple[int, ...]:
    return tuple(min(n, p) for n, p in zip(shape, patch))


def _start(shape: Any, patch: tuple[int, int, int]) -> tuple[int, ...]:
    """A random place; torch's dice, which differ between workers."""
    return tuple(int(torch.randint(max(0, n - p) + 1, ())) for n, p in zip(shape, patch))


def _box(shape: Any, patch: tuple[int, int, int]) -> tuple[slice, ...]:
    return tuple(slice(s, s + n) for s, n in zip(_start(shape, patch), _size(shape, patch)))
