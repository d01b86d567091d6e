"""What is wrong with one shard: its bytes, and each sample's geometry, voxels and labels.

Axes: C channel, D H W voxels; lengths in mm.
In: a tar and the manifest that lists it.  Out: Findings, and of each whole sample what lint.py compares between samples.
"""

import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np

from mri_ds.config import TaskConfig
from mri_ds.data.chunks import decode_array
from mri_ds.data.codec import checksum
from mri_ds.data.entries import ShardEntry, index_path, load_index, read_meta, scan_shard
from mri_ds.data.foreground import foreground_places
from mri_ds.data.intensity import describe
from mri_ds.data.manifest import Manifest
from mri_ds.data.members import IMAGE, META, PLACES, VOXELS, SampleMeta, decode_sample, label_member
from mri_ds.data.tars import file_sha256, member_reader, open_tar
from mri_ds.errors import InputError

SAME_MM = 1e-3

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One thing: which check found it, where (split, shard, subject) and what it is."""

    severity: Severity
    check: str
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.check}: {self.where}: {self.what}"


@dataclass(frozen=True)
class Sampled:
    """What is compared between samples."""

    split: str
    subject_id: str
    sources: tuple[str, ...]
    voxels: tuple[int, int]  # size and CRC-32 of the image member: the same volume is stored as the same bytes
    values: dict[str, int | float]
    site: str
    ranges: tuple[float, ...]  # of each channel, from percentile 0.5 to 99.5
    contrasts: tuple[float, ...]  # its deviation as a part of that range: the same in any unit
    spacing_mm: tuple[float, float, float]


def check_shard(shard: tuple[Path, str], manifest: Manifest) -> tuple[list[Finding], list[Sampled]]:
    """(path, split): everything about one tar."""
    path, split = shard
    findings: list[Finding] = []
    samples: list[Sampled] = []
    told = manifest.splits[split].sha256.get(path.name)
    if told is not None and file_sha256(path) != told:
        findings.append(Finding("error", "checksum", path.name, "is not the tar that the manifest tells of (SHA-256)"))
    try:
        entries = scan_shard(path)
        indexed = load_index(path)
    except InputError as err:
        return [*findings, Finding("error", "index", path.name, str(err))], samples
    if [_place(entry) for entry in entries] != [_place(entry) for entry in indexed]:
        what = "tells of other samples, or of other places, than its tar holds"
        findings.append(Finding("error", "index", index_path(path).name, what))
    checksums = {entry.key: entry.checksums for entry in indexed}
    with open_tar(path) as read_at:
        for entry in entries:
            where = f"{path.name}: {entry.key}"
            try:
                members = {
                    name: bytes(member_reader(read_at, f"{entry.key}.{name}", place, where=str(path))(0, place[1]))
                    for name, place in entry.members.items()
                }
                meta = read_meta(read_at, path, entry.key, entry.members)
                sums = {name: checksum(data) for name, data in members.items()}
                findings += _check_sums(sums, checksums.get(entry.key, {}), where)
                findings += _check_sample(members, meta, manifest, where)
                samples.append(_sampled(split, meta, (len(members[IMAGE]), sums[IMAGE])))
            except InputError as err:
                findings.append(Finding("error", "content", where, str(err)))
    return findings, samples


def _place(entry: ShardEntry) -> Hashable:
    return entry.key, entry.subject_id, entry.shape, tuple(sorted(entry.members.items())), tuple(entry.tasks)


def _check_sums(found: dict[str, int], told: dict[str, int], where: str) -> Iterator[Finding]:
    for name in sorted(told):
        if found.get(name) != told[name]:
            yield Finding("error", "checksum", f"{where}.{name}", "is not what its index tells of (CRC-32)")


def _check_sample(members: dict[str, bytes], meta: SampleMeta, manifest: Manifest, where: str) -> Iterator[Finding]:
    sample = decode_sample(members, where=where)
    yield from _check_geometry(meta, where)
    if len(sample["image"]) != len(manifest.channels):
        yield Finding("error", "geometry", where, f"{len(sample['image'])} channels, the manifest names {len(manifest.channels)}")
    for name, told, channel in zip(manifest.channels, meta.intensity, sample["image"]):
        if not np.isfinite(channel).all():
            yield Finding("error", "intensity", where, f"{name} holds NaN or infinity")
        elif channel.min() == channel.max():
            yield Finding("error", "intensity", where, f"{name} is constant")
        elif not _same(describe(channel).model_dump(), told.model_dump()):
            yield Finding("error", "intensity", where, f"{name} is not what its meta.json says of it")
    for task, target in sample["targets"].items():
        yield from _check_target(task, target, manifest.tasks.get(task), meta, where)
        places = members.get(label_member(task, PLACES))
        if places is not None and not np.array_equal(decode_array(places, where=where), foreground_places(target)):
            yield Finding("error", "labels", where, f"{task} has other places than {label_member(task, PLACES)} lists")
    known = {label_member(task, suffix) for task in manifest.tasks for suffix in (VOXELS, PLACES)} | {IMAGE, META}
    if members.keys() - known:
        yield Finding("warning", "content", where, f"members of no task: {', '.join(sorted(members.keys() - known))}")


def _check_geometry(meta: SampleMeta, where: str) -> Iterator[Finding]:
    affine = np.array(meta.affine)
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    if affine[3].tolist() != [0, 0, 0, 1] or not abs(np.linalg.det(affine[:3, :3])) > 1e-6 * sides.prod():
        yield Finding("error", "geometry", where, "affine cannot be inverted")
        return
    if np.abs(sides - meta.spacing_mm).max() > SAME_MM:
        what = f"spacing {tuple(meta.spacing_mm)} mm, its affine says {tuple(round(float(s), 4) for s in sides)}"
        yield Finding("error", "geometry", where, what)
    codes = "".join(nib.orientations.aff2axcodes(affine))
    if codes != "RAS":
        yield Finding("error", "geometry", where, f"axes run to {codes}, not to RAS")


def _check_target(task: str, target: Any, config: TaskConfig | None, meta: SampleMeta, where: str) -> Iterator[Finding]:
    if config is None:
        return
    is_map = isinstance(target, np.ndarray)
    if is_map != (config.kind == "segmentation"):
        yield Finding("error", "labels", where, f"{task} is {'a label map' if is_map else 'a value'}, the task a {config.kind}")
    elif config.kind == "regression":
        if not math.isfinite(target):
            yield Finding("error", "labels", where, f"{task} = {target} is not finite")
    else:
        low, high = (int(target.min()), int(target.max())) if is_map else (target, target)
        if low < 0 or high >= len(config.classes) or int(high) != high:
            what = f"{task} holds {low if low < 0 else high}, its classes are 0 to {len(config.classes) - 1}"
            yield Finding("error", "labels", where, what)
        elif is_map and np.bincount(target.ravel()).tolist() != meta.label_voxels.get(task):
            yield Finding("error", "labels", where, f"{task} has other class counts than its meta.json says")


def _sampled(split: str, meta: SampleMeta, voxels: tuple[int, int]) -> Sampled:
    clips = [channel.clip((0.5, 99.5)) for channel in meta.intensity]
    return Sampled(
        split=split,
        subject_id=meta.subject_id,
        sources=tuple(meta.source_sha256),
        voxels=voxels,
        values=meta.values,
        site=meta.site,
        ranges=tuple(clip.high - clip.low if clip else math.nan for clip in clips),
        contrasts=tuple(clip.std / (clip.high - clip.low) if clip and clip.high > clip.low else math.nan for clip in clips),
        spacing_mm=meta.spacing_mm,
    )


def _same(one: Any, other: Any) -> bool:
    """Equal but for rounding: another numpy may add in another order."""
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-6)
