"""A stack's voxels: read, decoded, rescaled.

In: a Stack of frames.  Out: (T, D, H, W) float32, D along a row, H down the columns, W from slice to slice.
Uncompressed pixels are decoded here, compressed ones by `decode.py` in a process of its own: the C decoders are not trusted
with bytes that nobody has checked. Sizes are compared with what the files can hold before anything is allocated.
Value = stored * RescaleSlope + RescaleIntercept (DICOM PS3.3, C.11.1), in float64, kept as float32.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from mri_ds.data.dicom.decode import DEFLATED, NATIVE, can_decode, decode, stored_dtype
from mri_ds.data.dicom.elements import Damaged, damaged, quiet, read_elements
from mri_ds.data.dicom.files import Source
from mri_ds.data.dicom.frame import Frame, StoredPixels
from mri_ds.data.dicom.geometry import Stack
from mri_ds.errors import InputError

PLAIN = NATIVE - {DEFLATED}  # the file is at least as large as its voxels
MAX_RATIO = 1000  # of voxels' bytes to a compressed series' bytes; a noisy image reaches 5, empty slices more
DECODER_BYTES = 2**30  # address space of the decoding process, beside what the voxels take
DECODER_SECONDS_PER_MIB = 2.0  # of decoded voxels; JPEG 2000 takes a twentieth
DECODER_SECONDS = 60.0
BATCH_BYTES = 2**27  # of decoded voxels that one decoding process returns


class Undecodable(Exception):
    """This machine has no decoder for a transfer syntax; its text names it."""


def read_voxels(stack: Stack, where: Path) -> np.ndarray:
    """(T, D, H, W) float32. Raises InputError for damaged or truncated pixels, Undecodable where a decoder is missing."""
    wanted = defaultdict[Source, list[tuple[int, int, Frame]]](list)
    for t, frames in enumerate(stack.frames):
        for k, frame in enumerate(frames):
            wanted[frame.source].append((t, k, frame))
    stored = {source: frames[0][2].stored for source, frames in wanted.items()}
    for source, pixels in stored.items():
        _check_encoding(source, pixels, where)
    _check_sizes(stored, where)
    columns, rows, num_slices = stack.shape
    voxels = np.empty((len(stack.frames), num_slices, rows, columns), dtype=np.float32)
    for source, planes in _decoded(stored, where):
        for t, k, frame in wanted[source]:
            voxels[t, k] = _rescaled(planes, frame)
    return np.ascontiguousarray(voxels.transpose(0, 3, 2, 1))


def _rescaled(planes: np.ndarray, frame: Frame) -> np.ndarray:
    top, left = frame.offset
    plane = planes[frame.index, top : top + frame.shape[0], left : left + frame.shape[1]]
    if frame.slope == 1 and frame.intercept == 0:
        return plane
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is reported as that
        return (plane * np.float64(frame.slope) + frame.intercept).astype(np.float32)


# ---- checks ----------------------------------------------------------------------------------------------------------


def _check_encoding(source: Source, pixels: StoredPixels, where: Path) -> None:
    if pixels.bits_allocated not in (8, 16, 32):
        fix = "give an image series: masks and real-valued maps are not read"
        raise InputError(f"{source.label} has {pixels.bits_allocated} bits per voxel", where=where, fix=fix)
    with quiet():
        if not can_decode(pixels.transfer_syntax):
            raise Undecodable(pixels.transfer_syntax)


def _check_sizes(stored: dict[Source, StoredPixels], where: Path) -> None:
    """No file may declare more voxels than its bytes can hold."""
    for source, pixels in stored.items():
        if pixels.transfer_syntax in PLAIN and num_bytes(pixels) > source.size:
            what = f"{source.label} declares {num_bytes(pixels)} bytes of voxels, more than its {source.size} bytes can hold"
            raise InputError(what, where=where, fix="it is truncated or damaged: copy or export it again")
    compressed = {source: pixels for source, pixels in stored.items() if pixels.transfer_syntax not in PLAIN}
    declared, there = sum(map(num_bytes, compressed.values())), sum(source.size for source in compressed)
    if declared > MAX_RATIO * there:
        what = f"declares {declared} bytes of voxels, more than {there} compressed bytes can hold"
        raise InputError(what, where=where, fix="it is damaged: copy or export it again")


def num_bytes(pixels: StoredPixels) -> int:
    """Of the decoded voxels of one file."""
    return pixels.num_frames * pixels.rows * pixels.columns * (pixels.bits_allocated // 8)


# ---- decoding --------------------------------------------------------------------------------------------------------


def _decoded(stored: dict[Source, StoredPixels], where: Path) -> Iterator[tuple[Source, np.ndarray]]:
    """Stored integers (frames, rows, columns) of each file."""
    for (syntax, _), batch in groupby(_batches(stored), key=lambda item: item[0]):
        sources = [source for _, source in batch]
        options = [_options(stored[source]) for source in sources]
        if syntax not in NATIVE:
            yield from zip(sources, _in_process(syntax, options, sources, where))
            continue
        for source, option in zip(sources, options):
            try:
                with quiet():
                    planes = decode(syntax, option, _pixel_bytes(source, option))
            except (InputError, MemoryError):
                raise
            except Exception:
                raise damaged(source, "pixel data truncated, or not as the header says") from None
            yield source, planes


def _batches(stored: dict[Source, StoredPixels]) -> Iterator[tuple[tuple[str, int], Source]]:
    """((transfer syntax, number of the batch), file), a batch being what one decoding process takes."""
    batch, held = 0, 0
    for source, pixels in stored.items():
        if held and held + num_bytes(pixels) > BATCH_BYTES:
            batch, held = batch + 1, 0
        held += num_bytes(pixels)
        yield (pixels.transfer_syntax, batch), source


def _options(pixels: StoredPixels) -> dict[str, Any]:
    """As pydicom's decoders name them."""
    return {
        "number_of_frames": pixels.num_frames,
        "rows": pixels.rows,
        "columns": pixels.columns,
        "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME2",
        "pixel_representation": int(pixels.is_signed),
        "bits_allocated": pixels.bits_allocated,
        "bits_stored": pixels.bits_stored,
        "pixel_keyword": "PixelData",
    }


def _pixel_bytes(source: Source, options: dict[str, Any]) -> bytes:
    """As they are in the file; their VR goes into `options` (big-endian bytes in 16-bit words are swapped, by themselves not)."""
    read = read_elements(source, ["PixelData"], pixels=True)
    elements = read[0][0] if read else None
    data = elements.raw("PixelData") if elements else None
    if elements is None or not isinstance(data, bytes):
        raise Damaged("PixelData")
    options["pixel_vr"] = "OB" if elements.vr("PixelData") == "OB" else "OW"
    return data


def _in_process(syntax: str, options: list[dict[str, Any]], sources: list[Source], where: Path) -> Iterator[np.ndarray]:
    try:
        with quiet():
            data = [_pixel_bytes(source, option) for source, option in zip(sources, options)]
    except Damaged:
        raise InputError("a file has no pixel data", where=where, fix="export the series again") from None
    dtypes = [stored_dtype(option) for option in options]
    shapes = [(option["number_of_frames"], option["rows"], option["columns"]) for option in options]
    lengths = [int(np.prod(shape, dtype=np.int64)) * dtype.itemsize for shape, dtype in zip(shapes, dtypes)]
    elements = [{"options": option, "length": len(item)} for option, item in zip(options, data)]
    request = {
        "transfer_syntax": syntax,
        "elements": elements,
        "max_memory": DECODER_BYTES + 4 * max(lengths) + sum(map(len, data)),
    }
    decoded = _run(json.dumps(request).encode() + b"\n" + b"".join(data), sum(lengths), where)
    start = 0
    for shape, dtype, length in zip(shapes, dtypes, lengths):
        yield np.frombuffer(decoded, dtype, count=length // dtype.itemsize, offset=start).reshape(shape)
        start += length


def _run(request: bytes, length: int, where: Path) -> bytes:
    command = [
        sys.executable,
        "-P",
        str(Path(__file__).with_name("decode.py")),
    ]  # -P: this folder's modules must not shadow others
    patience_s = DECODER_SECONDS + DECODER_SECONDS_PER_MIB * length / 2**20
    try:
        done = subprocess.run(command, input=request, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=patience_s)
    except subprocess.TimeoutExpired:
        raise InputError("compressed pixel data take too long to decode", where=where, fix="export the series again") from None
    if done.returncode or len(done.stdout) != length:
        what = "compressed pixel data are truncated or damaged"
        raise InputError(what, where=where, fix="export the series again, uncompressed if you can")
    return done.stdout
