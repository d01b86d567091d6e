"""What a folder of shards holds, in one JSON file: `manifest.json`.

In: the summaries of the subjects that were sharded.  Out: a Manifest, written last, so that its presence means a complete folder.
Statistics (class priors, mean, std, median grid) come from the training subjects alone: nothing of the test split leaks.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mri_ds.config import TaskConfig, Triple
from mri_ds.data.remote import locate
from mri_ds.errors import InputError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"

T = TypeVar("T")
ShardName = Annotated[str, Field(pattern=r"^\w[\w.-]*\.tar$")]  # a name, never a path: a manifest cannot point outside its folder


class Split(BaseModel):
    """The shards of one split, in reading order."""

    model_config = ConfigDict(extra="forbid")
    shards: list[ShardName]
    num_samples: int = Field(ge=0)


class Fingerprint(BaseModel):
    """The typical grid of the training subjects in canonical orientation: per-axis medians."""

    model_config = ConfigDict(extra="forbid")
    median_spacing_mm: tuple[float, float, float]
    median_shape: Triple


class Manifest(BaseModel):
    """`manifest.json`. `skipped` has one line "subject: reason" for each subject that was left out on request."""

    model_config = ConfigDict(extra="forbid")
    format_version: int
    layout: str
    channels: list[str]
    tasks: dict[str, TaskConfig]  # class_prior, mean and std are of the training subjects
    num_folds: int = Field(default=5, ge=2)
    fold: int = Field(default=0, ge=0)  # the fold that is `test`
    splits: dict[str, Split]
    fingerprint: Fingerprint
    skipped: list[str] = []


@dataclass(frozen=True)
class Summary:
    """What the statistics need to know of one subject, without its voxels."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    voxels_per_class: dict[str, np.ndarray]  # segmentation task -> (K,) int64
    values: dict[str, int | float]  # classification -> class index, regression -> value


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder of shards. Raises InputError when there is none, or it is not ours, or a shard is missing."""
    path = locate(folder) / MANIFEST
    if not path.is_file():
        raise InputError("no shards here (no manifest.json)", where=folder, fix="run `mri-ds shard SRC --out DIR`")
    try:
        raw = json.loads(path.read_bytes())
        check_format_version(raw, where=path)
        manifest = Manifest.model_validate(raw)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise InputError("is not JSON", where=path, fix="run `mri-ds shard SRC --out DIR` again") from None
    except ValidationError as err:
        first = err.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{key}: {first['msg']}", where=path, fix="run `mri-ds shard SRC --out DIR` again") from None
    for split in manifest.splits.values():
        for name in split.shards:
            if not (path.parent / name).is_file():
                raise InputError(f"lists {name}, which is not there", where=path, fix="run `mri-ds shard SRC --out DIR` again")
    return manifest


def write_manifest(manifest: Manifest, path: Path) -> None:
    """The same manifest gives the same bytes. Tasks keep their order, which the user chose."""
    path.write_text(json.dumps(manifest.model_dump(mode="json"), indent=1) + "\n")


def check_format_version(raw: object, *, where: str | Path) -> None:
    """Refuses a file of a format that this version cannot read."""
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version != FORMAT_VERSION:
        fix = "upgrade mri_ds, or shard the data again with this version"
        raise InputError(f"format_version {version!r} is unknown (this version reads {FORMAT_VERSION})", where=where, fix=fix)


def with_statistics(tasks: dict[str, TaskConfig], train: Sequence[Summary]) -> dict[str, TaskConfig]:
    """Fills class_prior, mean and std. A task without any label in `train` keeps what it has.

    Segmentation: share of voxels per class over the labelled subjects; classification: share of subjects; regression: mean
    and population standard deviation (1 when all values are equal, so that dividing by it stays defined).
    """
    return {name: task.model_copy(update=_statistics(name, task, train)) for name, task in tasks.items()}


def fingerprint(train: Sequence[Summary]) -> Fingerprint:
    """Per-axis medians of spacing and shape; a half voxel is rounded up."""
    spacing = np.median([s.spacing_mm for s in train], axis=0)
    shape = np.floor(np.median([s.shape for s in train], axis=0) + 0.5)
    return Fingerprint(median_spacing_mm=_triple(spacing.tolist()), median_shape=_triple(int(n) for n in shape))


def _statistics(name: str, task: TaskConfig, train: Sequence[Summary]) -> dict[str, object]:
    if task.kind == "segmentation":
        counts = [s.voxels_per_class[name] for s in train if name in s.voxels_per_class]
        return {"class_prior": _shares(np.sum(counts, axis=0))} if counts else {}
    values = [s.values[name] for s in train if name in s.values]
    if not values:
        return {}
    if task.kind == "classification":
        return {"class_prior": _shares(np.bincount(np.array(values, dtype=np.int64), minlength=len(task.classes)))}
    return {"mean": float(np.mean(values)), "std": float(np.std(values)) or 1.0}


def _shares(counts: np.ndarray) -> list[float]:
    return (counts / counts.sum()).tolist()


def _triple(values: Iterable[T]) -> tuple[T, T, T]:
    a, b, c = values
    return a, b, c
