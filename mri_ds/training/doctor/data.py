"""The shards, as this machine sees them, and room on disk for checkpoints."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import cast

from mri_ds.config import RunConfig
from mri_ds.data.manifest import Manifest, read_manifest
from mri_ds.data.ranges import Retry
from mri_ds.data.remote import RemotePath, locate
from mri_ds.errors import InputError
from mri_ds.training.doctor.config import _split
from mri_ds.training.doctor.finding import Finding, Request
from mri_ds.training.plan.parameters import count
from mri_ds.training.plan.science import science_with_tasks

KEPT = 3  # checkpoints on disk at once: the last two, and the one that is being written
BYTES = 16  # of a parameter in a checkpoint: float32 weights, both moments, and what is left of alignment and 16-bit copies


def check_data(request: Request, config: RunConfig | None) -> list[Finding]:
    findings = _room(request, config)
    if request.data is None:
        return findings
    try:
        manifest = read_manifest(_briefly(locate(request.data), request.timeout_s))
    except InputError as err:
        return [*findings, Finding("data-unreachable", *_split(err))]
    except OSError as err:
        return [*findings, Finding("data-unreachable", str(err), "check the address and your access", str(request.data))]
    return findings + _enough(manifest, request, config)


def _briefly(folder: Path, timeout_s: float) -> Path:
    """A remote folder with two attempts instead of minutes of them."""
    if not isinstance(folder, RemotePath):
        return folder
    return cast(Path, replace(folder, cache=None, retry=Retry(attempts=2, first_s=0.2, timeout_s=timeout_s)))


def _enough(manifest: Manifest, request: Request, config: RunConfig | None) -> list[Finding]:
    where, split = str(request.data), manifest.splits.get("train")
    if split is None or not split.num_samples:
        return [Finding("data-empty", "has no subject to train on", "shard more subjects", where)]
    out = []
    if len(split.shards) < request.nodes:
        reason = f"{len(split.shards)} shard(s) for {request.nodes} nodes: all of them would read the same file"
        out.append(Finding("shards-too-few", reason, f"shard into at least {request.nodes} tars", where))
    if config is not None:
        if config.training.global_batch > split.num_samples:
            reason = (
                f"training.global_batch = {config.training.global_batch} and {split.num_samples} subjects: the rest is padding"
            )
            out.append(Finding("subjects-too-few", reason, "lower training.global_batch", where))
        for name in config.tasks:
            if name not in manifest.tasks:
                reason = f"task {name!r} is not in the shards"
                out.append(Finding("task-missing", reason, f"train {', '.join(manifest.tasks)}", where))
    return out


def _room(request: Request, config: RunConfig | None) -> list[Finding]:
    folder = nearest_folder(request.run)
    if config is None:
        return []
    need, free = checkpoint_bytes(config) * KEPT, shutil.disk_usage(folder).free
    if free < need:
        reason = f"{free / 1e9:.1f} GB free, and {KEPT} checkpoints take {need / 1e9:.1f} GB"
        return [Finding("disk-too-small", reason, "free some, or choose another --run", str(folder))]
    return []


def checkpoint_bytes(config: RunConfig) -> int:
    """Of one checkpoint, all ranks together."""
    return BYTES * count(science_with_tasks(config)).total


def nearest_folder(path: Path) -> Path:
    """`path`, or the closest folder above it that exists."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())
