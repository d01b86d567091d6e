"""What a folder of shards holds, in one JSON file: `manifest.json`.

In: the summaries of the subjects that were sharded.  Out: a Manifest, written last, so that its presence means a complete folder.
Statistics (class priors, mean, std, the fingerprint) come from the training subjects alone: nothing of the test split leaks.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mri_ds.config import SHARE_FLOOR, TaskConfig
from mri_ds.data.fingerprint import Fingerprint, Summary
from mri_ds.data.parts import smallest_part_ml
from mri_ds.data.remote import locate
from mri_ds.errors import InputError

FORMAT_VERSION = 2
MAX_MANIFEST_BYTES = 2**26
MANIFEST = "manifest.json"

ShardName = Annotated[str, Field(pattern=r"^\w[\w.-]*\.tar$")]  # a name, never a path: a manifest cannot point outside its folder


class Split(BaseModel):
    """The shards of one split, in reading order, and the SHA-256 of each tar."""

    model_config = ConfigDict(extra="forbid")
    shards: list[ShardName]
    num_samples: int = Field(ge=0)
    sha256: dict[ShardName, str] = {}


class Manifest(BaseModel):
    """`manifest.json`. `skipped` has one line "subject: reason" for each subject that was left out on request, `notes` one for
    each thing about a subject's files that a person should know."""

    model_config = ConfigDict(extra="forbid")
    format_version: int
    layout: str
    channels: list[str]
    tasks: dict[str, TaskConfig]  # their statistics are of the training subjects
    num_folds: int = Field(default=5, ge=2)
    fold: int = Field(default=0, ge=0)  # the fold that is `test`
    splits: dict[str, Split]
    fingerprint: Fingerprint
    skipped: list[str] = []
    notes: list[str] = []


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder of shards. Raises InputError when there is none, or it is not ours, or a shard is missing."""
    path = locate(folder) / MANIFEST
    if not path.is_file():
        raise InputError("no shards here (no manifest.json)", where=folder, fix="run `mri-ds shard SRC --out DIR`")
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise InputError(f"is over {MAX_MANIFEST_BYTES} bytes", where=path, fix="run `mri-ds shard SRC --out DIR` again")
    try:
        raw = json.loads(path.read_bytes())
        check_format_version(raw, where=path)
        manifest = Manifest.model_validate(raw)
    except ValidationError as err:
        first = err.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{key}: {first['msg']}", where=path, fix="run `mri-ds shard SRC --out DIR` again") from None
    except InputError:
        raise
    except (ValueError, RecursionError):
        raise InputError("is not JSON", where=path, fix="run `mri-ds shard SRC --out DIR` again") from None
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
        fix = "shard the data again with this version, or upgrade mri_ds"
        raise InputError(f"format_version {version!r} is unknown (this version reads {FORMAT_VERSION})", where=where, fix=fix)


def with_statistics(tasks: dict[str, TaskConfig], train: Sequence[Summary]) -> dict[str, TaskConfig]:
    """Fills the statistics. A task without any label in `train` keeps what it has.

    Segmentation, over the labelled subjects: share of voxels per class, share of subjects that show it, log of its share of a
    subject, size of its smallest parts; classification: share of subjects; regression: mean
    and population standard deviation (1 when all values are equal, so that dividing by it stays defined).
    """
    return {name: task.model_copy(update=_statistics(name, task, train)) for name, task in tasks.items()}


def _statistics(name: str, task: TaskConfig, train: Sequence[Summary]) -> dict[str, object]:
    if task.kind == "segmentation":
        labelled = [s for s in train if name in s.voxels_per_class]
        return _segmentation_statistics(name, labelled) if labelled else {}
    values = [s.values[name] for s in train if name in s.values]
    if not values:
        return {}
    if task.kind == "classification":
        return {"class_prior": _shares(np.bincount(np.array(values, dtype=np.int64), minlength=len(task.classes)))}
    return {"mean": float(np.mean(values)), "std": float(np.std(values)) or 1.0}


def _segmentation_statistics(name: str, labelled: Sequence[Summary]) -> dict[str, object]:
    counts = np.array([s.voxels_per_class[name] for s in labelled])  # (N, K)
    parts = [s.part_ml[name] for s in labelled if name in s.part_ml]
    log_shares = np.log(np.maximum(counts / counts.sum(axis=1, keepdims=True), SHARE_FLOOR))
    shown = [log_shares[counts[:, k] > 0, k] for k in range(counts.shape[1])]  # absence would stretch the scale of presence
    return {
        "log_share_mean": [float(x.mean()) if x.size else math.log(SHARE_FLOOR) for x in shown],
        "log_share_std": [float(x.std()) if x.size else 0.0 for x in shown],
        "class_prior": _shares(counts.sum(axis=0)),
        "class_presence": (counts > 0).mean(axis=0).tolist(),
        "smallest_part_ml": [0.0, *(smallest_part_ml(volumes) for volumes in zip(*parts, strict=True))] if parts else [],
    }


def _shares(counts: np.ndarray) -> list[float]:
    return (counts / counts.sum()).tolist()
