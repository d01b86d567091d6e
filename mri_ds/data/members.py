"""One sample as named bytes: the members that a shard holds for it, and back.

Axes: C channel, D H W voxels of the native grid in canonical (RAS+) orientation; lengths in mm.
In: a Sample.  Out: {"image.npy.zst", "<task>.npy.zst" per label map, "meta.json" for all the rest}, each prefixed with "KEY." in
the tar. KEY is the subject id, escaped, because webdataset ends a key at the first dot of a name; task names are escaped too,
because it lower-cases what follows the key.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

import numpy as np
from pydantic import BaseModel, ValidationError

from mri_ds.data.codec import as_stored, decode_array, encode_array
from mri_ds.data.manifest import FORMAT_VERSION, check_format_version
from mri_ds.errors import InputError
from mri_ds.sample import Sample

LOWER = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_-")
LETTERS = LOWER | frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
VOXELS = ".npy.zst"
IMAGE = "image" + VOXELS
META = "meta.json"
FIX = "shard the data again"


class SampleMeta(BaseModel):
    """meta.json. `values` holds class indices and regression targets, `source_sha256` a digest per image file."""

    format_version: int
    subject_id: str
    affine: list[list[float]]  # (4, 4)
    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int, int]  # C D H W
    dtype: str  # of the stored image; it is read back as float32
    values: dict[str, int | float] = {}
    source_sha256: list[str] = []


def encode_sample(sample: Sample, *, source_sha256: Sequence[str] = ()) -> dict[str, bytes]:
    """Sample -> {member name without its key: bytes}; the same bytes for the same sample."""
    image = as_stored(sample["image"])
    maps = {task: label for task, label in sample["targets"].items() if isinstance(label, np.ndarray)}
    meta = {
        "format_version": FORMAT_VERSION,
        "subject_id": sample["subject_id"],
        "affine": sample["affine"].tolist(),
        "spacing_mm": sample["spacing_mm"].tolist(),
        "shape": list(image.shape),
        "dtype": image.dtype.name,
        "values": {task: value for task, value in sample["targets"].items() if task not in maps},
        "source_sha256": list(source_sha256),
    }
    voxels = {IMAGE: image} | {label_member(task): label for task, label in maps.items()}
    return {name: encode_array(array) for name, array in voxels.items()} | {META: json.dumps(meta, sort_keys=True).encode()}


def decode_sample(members: Mapping[str, bytes], *, where: str = "") -> Sample:
    """The inverse of `encode_sample`; image float32, labels int16. Raises InputError for members that contradict each other."""
    meta = decode_meta(members[META], where=where)
    image = decode_array(members[IMAGE], where=f"{where}.{IMAGE}")
    targets: dict[str, Any] = dict(meta.values)
    for name in sorted(members):
        if (task := task_of(name)) is not None:
            label = decode_array(members[name], where=f"{where}.{name}")
            _check_shape(label, meta.shape[1:], where=f"{where}.{name}")
            targets[task] = label.astype(np.int16, copy=False)
    _check_shape(image, meta.shape, where=f"{where}.{IMAGE}")
    return Sample(
        subject_id=meta.subject_id,
        image=image.astype(np.float32, copy=False),
        affine=np.array(meta.affine, dtype=np.float64),
        spacing_mm=np.array(meta.spacing_mm, dtype=np.float64),
        targets=targets,
    )


def decode_meta(data: bytes, *, where: str = "") -> SampleMeta:
    """Bytes of a meta.json -> SampleMeta. Raises InputError for another format version or a missing field."""
    try:
        raw = json.loads(data)
        check_format_version(raw, where=f"{where}.{META}")
        return SampleMeta.model_validate(raw)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise InputError("is not JSON", where=f"{where}.{META}", fix=FIX) from None
    except ValidationError as err:
        first = err.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{key}: {first['msg']}", where=f"{where}.{META}", fix=FIX) from None


def key_of(subject_id: str) -> str:
    """Subject id -> key: anything but letters, digits, _ and - percent-encoded. Undone by urllib.parse.unquote.

    >>> key_of("sub-01/ses.2"), unquote(key_of("sub-01/ses.2"))
    ('sub-01%2Fses%2E2', 'sub-01/ses.2')
    """
    return _escape(subject_id, LETTERS)


def label_member(task: str) -> str:
    """Task -> member name. "image" is escaped whole, so that no task can take the image's place.

    >>> label_member("tissue"), label_member("Grey.Matter"), label_member("image")
    ('tissue.npy.zst', '%47rey%2E%4Datter.npy.zst', '%69%6D%61%67%65.npy.zst')
    """
    return _escape(task, LOWER if task != "image" else frozenset()) + VOXELS


def task_of(member: str) -> str | None:
    """Member name -> task of the label map it holds, or None for the image and the meta."""
    return unquote(member.removesuffix(VOXELS)) if member.endswith(VOXELS) and member != IMAGE else None


def _escape(text: str, plain: frozenset[str]) -> str:
    return "".join(char if char in plain else "".join(f"%{byte:02X}" for byte in char.encode()) for char in text)


def _check_shape(array: np.ndarray, shape: Sequence[int], *, where: str) -> None:
    if array.shape != tuple(shape):
        raise InputError(f"has shape {array.shape}, its meta.json says {tuple(shape)}", where=where, fix=FIX)
