"""One crop of a large volume, from our shard and from .nii.gz by nibabel: bytes read and time, side by side.

Axes: D H W voxels.  In: sizes.  Out: a dictionary for JSON.
Both open their file anew for each crop, as a loader does that meets a subject for the first time: ours reads its index, the tar's
header, meta.json, the table of chunks and the chunks; nibabel inflates the stream up to the crop's last slice. Bytes are those
that the process asked of the system (rchar of /proc/self/io), the file's pages are in memory for both.
"""

import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from mri_ds.data.fingerprint import Fingerprint, Summary
from mri_ds.data.index import ShardDataset
from mri_ds.data.manifest import FORMAT_VERSION, MANIFEST, Manifest, Split, write_manifest
from mri_ds.data.members import encode_sample, key_of
from mri_ds.data.packing import EncodedSubject, ShardWriter
from mri_ds.errors import InputError

CELL = 16  # voxels along which the anatomy changes
Row = dict[str, Any]


def bench_crop(
    *,
    size: int = 512,
    crop: int = 128,
    repeats: int = 5,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """crop^3 voxels at `repeats` random places of a noisy size^3 head of int16, the same places for both.

    Result: {"size", "crop", "repeats", "mri_ds": {...}, "nibabel": {...}, "wall_ratio", "cpu_ratio"} (nibabel / ours); each with
    "file_bytes" and, medians of a crop, "bytes_read" (None where the system does not tell), "share" of the file, "wall_ms",
    "cpu_ms". Raises InputError for a crop larger than the volume, RuntimeError should the two ever read other voxels.
    """
    if crop > size:
        raise InputError(f"--crop {crop} of --size {size}", fix="choose a crop that fits")
    rng = np.random.default_rng(seed)
    tell = progress or (lambda done, total: None)
    with tempfile.TemporaryDirectory(prefix="mri_ds_bench_") as name:
        folder = Path(name)
        volume = _head(size, rng)
        nifti, tar = _write_nifti(volume, folder), _write_shard(volume, folder / "shards")
        tell(1, 1 + repeats)
        ours, theirs = list[Row](), list[Row]()
        for done, start in enumerate(rng.integers(0, size - crop + 1, size=(repeats, 3)).tolist(), start=1):
            mine, row = _measured(lambda: _ours(folder / "shards", start, crop))  # noqa: B023
            ours.append(row)
            other, row = _measured(lambda: _nibabel(nifti, start, crop))  # noqa: B023
            theirs.append(row)
            box = tuple(slice(first, first + crop) for first in start)
            if not (np.array_equal(mine, volume[box]) and np.array_equal(other, volume[box])):
                raise RuntimeError(f"the crop at {start} differs")
            tell(1 + done, 1 + repeats)
        table = {"mri_ds": _median(ours, tar), "nibabel": _median(theirs, nifti)}
    ratios = {f"{clock}_ratio": table["nibabel"][f"{clock}_ms"] / table["mri_ds"][f"{clock}_ms"] for clock in ("wall", "cpu")}
    return {"size": size, "crop": crop, "repeats": repeats, **table, **ratios}


def _ours(shards: Path, start: Sequence[int], crop: int) -> np.ndarray:
    return ShardDataset(shards, "train").read_crop(0, start, (crop, crop, crop))["image"][0]


def _nibabel(path: Path, start: Sequence[int], crop: int) -> np.ndarray:
    box = tuple(slice(first, first + crop) for first in start)
    return np.asarray(nib.load(path).dataobj[box], dtype=np.float32)  # type: ignore[attr-defined]


# ---- the volume, in both forms ---------------------------------------------------------------------------------------


def _head(size: int, rng: np.random.Generator) -> np.ndarray:
    """(size, size, size) int16: an ellipsoid of blurred tissue with noise in air with noise, written a slice at a time."""
    cells = rng.normal(400, 120, size=(-(-size // CELL) + 1,) * 3).astype(np.float32)
    axis = (np.arange(size) - size / 2) / (0.42 * size)
    inside = axis[:, None] ** 2 + axis[None, :] ** 2
    out = np.empty((size, size, size), dtype=np.int16)
    for d in range(size):
        place, between = divmod(d, CELL)
        plane = cells[place] * (1 - between / CELL) + cells[place + 1] * (between / CELL)
        tissue = plane.repeat(CELL, 0).repeat(CELL, 1)[:size, :size]
        noise = rng.normal(0, 20, size=(size, size)).astype(np.float32)
        out[d] = np.abs(np.where(inside + axis[d] ** 2 < 1, tissue, 0) + noise)
    return out


def _write_nifti(volume: np.ndarray, folder: Path) -> Path:
    path = folder / "volume.nii.gz"
    nib.save(nib.Nifti1Image(volume, np.eye(4)), path)  # type: ignore[attr-defined]
    return path


def _write_shard(volume: np.ndarray, folder: Path) -> Path:
    """One subject in one tar; returns the tar."""
    folder.mkdir()
    sample: Any = {
        "subject_id": "head",
        "image": volume[None],
        "affine": np.eye(4),
        "spacing_mm": np.ones(3),
        "targets": {},
    }
    writer = ShardWriter(folder, "train")
    writer.add(EncodedSubject(key_of("head"), encode_sample(sample), Summary(volume.shape, (1, 1, 1), {}, {})))
    writer.close()
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        layout="bench",
        channels=["image"],
        tasks={},
        splits={"train": Split(shards=writer.names, num_samples=1)},
        fingerprint=Fingerprint(median_spacing_mm=(1, 1, 1), median_shape=volume.shape),
    )
    write_manifest(manifest, folder / MANIFEST)
    return folder / writer.names[0]


# ---- clocks and counters ---------------------------------------------------------------------------------------------


def _measured(read: Callable[[], np.ndarray]) -> tuple[np.ndarray, Row]:
    bytes_before, cpu, wall = _bytes_read(), _cpu_s(), time.perf_counter()
    voxels = read()
    row: Row = {"wall_ms": 1e3 * (time.perf_counter() - wall), "cpu_ms": 1e3 * (_cpu_s() - cpu)}
    after = _bytes_read()
    row["bytes_read"] = None if after is None or bytes_before is None else after - bytes_before
    return voxels, row


def _bytes_read() -> int | None:
    """That this process has read so far. Linux only."""
    try:
        text = Path("/proc/self/io").read_text()
    except OSError:
        return None
    return int(text.split("rchar:")[1].split()[0])


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _median(rows: list[Row], path: Path) -> Row:
    size = os.path.getsize(path)
    reads = [row["bytes_read"] for row in rows]
    num_bytes = None if None in reads else statistics.median(reads)
    times = {key: statistics.median(row[key] for row in rows) for key in ("wall_ms", "cpu_ms")}
    return {"file_bytes": size, "bytes_read": num_bytes, "share": None if num_bytes is None else num_bytes / size, **times}
