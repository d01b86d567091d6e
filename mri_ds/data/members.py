"""One sample as named bytes: the members that a shard holds for it, and back.

Axes: C channel, D H W voxels of the native grid in canonical (RAS+) orientation; lengths in mm.
In: a Sample.  Out: {"image.chunks", for each label map "<task>.chunks" and "<task>.places" (where its classes are), "meta.json"
for all the rest}, each prefixed with "KEY." in the tar. KEY is the subject id, escaped, because webdataset ends a key at the
first dot of a name; task names are escaped too, because it lower-cases what follows the key.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import unquote

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from mri_ds.data.chunks import decode_array, encode_array
from mri_ds.data.codec import as_stored
from mri_ds.data.foreground import foreground_places
from mri_ds.data.intensity import ChannelIntensity, describe
from mri_ds.data.manifest import FORMAT_VERSION, check_format_version
from mri_ds.errors import InputError
from mri_ds.sample import Sample

LOWER = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_-")
LETTERS = LOWER | frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
VOXELS, PLACES = ".chunks", ".places"
IMAGE = "image" + VOXELS
META = "meta.json"
FIX = "shard the data again"
MAX_TAG_LETTERS = 64
TAG_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")

Length = Annotated[int, Field(ge=1, le=2**20)]
Tags = dict[str, float | str]


class SampleMeta(BaseModel):
    """meta.json. `values` holds class indices and regression targets, `source_sha256` a digest per image file."""

    format_version: int
    subject_id: str
    affine: list[list[float]]  # (4, 4)
    spacing_mm: tuple[float, float, float]
    shape: tuple[Length, Length, Length, Length]  # C D H W
    dtype: str  # of the stored image; it is read back as float32
    intensity: list[ChannelIntensity]  # one per channel
    label_voxels: dict[str, list[int]] = {}  # per label map the number of voxels of each value from 0 on
    values: dict[str, int | float] = {}
    site: str = Field(default="", max_length=MAX_TAG_LETTERS)
    strata: dict[str, Annotated[str, Field(max_length=MAX_TAG_LETTERS)]] = {}  # age_band, scanner, sex: those that are known
    patient: str = Field(default="", max_length=MAX_TAG_LETTERS)  # where it has several subjects, which no split may part
    acquisition: list[Tags] = []  # one per channel, or none at all
    source_sha256: list[str] = []


def encode_sample(
    sample: Sample, *, source_sha256: Sequence[str] = (), site: str = "", strata: Mapping[str, str] = {}, patient: str = ""
) -> dict[str, bytes]:
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
        "intensity": [describe(channel).model_dump() for channel in image],
        "label_voxels": {task: np.bincount(label.ravel()).tolist() for task, label in maps.items()},
        "values": {task: value for task, value in sample["targets"].items() if task not in maps},
        "site": site[:MAX_TAG_LETTERS],
        "acquisition": [_checked(tags) for tags in sample.get("acquisition", [])],
        "source_sha256": list(source_sha256),
    }
    if patient:
        meta["patient"] = patient[:MAX_TAG_LETTERS]
    if strata:
        meta["strata"] = {name: value[:MAX_TAG_LETTERS] for name, value in strata.items()}
    members = {IMAGE: encode_array(image), META: json.dumps(meta, sort_keys=True).encode()}
    for task, label in maps.items():
        places = foreground_places(label)
        members[label_member(task)] = encode_array(as_stored(label))
        members[label_member(task, PLACES)] = encode_array(places)
    return members


def decode_sample(members: Mapping[str, bytes], *, where: str = "") -> Sample:
    """The inverse of `encode_sample`; image float32, labels int16. Raises InputError for members that contradict each other."""
    meta = decode_meta(members[META], where=where)
    image = decode_array(members[IMAGE], where=f"{where}.{IMAGE}")
    labels = {}
    for name in sorted(members):
        if (task := task_of(name)) is not None:
            labels[task] = decode_array(members[name], where=f"{where}.{name}")
            check_shape(labels[task].shape, meta.shape[1:], where=f"{where}.{name}")
    check_shape(image.shape, meta.shape, where=f"{where}.{IMAGE}")
    return make_sample(meta, image, labels)


def make_sample(
    meta: SampleMeta, image: np.ndarray, labels: Mapping[str, np.ndarray], start: Sequence[int] = (0, 0, 0)
) -> Sample:
    """Stored arrays -> Sample. They may be a box of the volume that begins at voxel `start`: the affine follows."""
    affine = np.array(meta.affine, dtype=np.float64)
    affine[:3, 3] += affine[:3, :3] @ np.asarray(start, dtype=np.float64)
    targets: dict[str, Any] = dict(meta.values) | {task: label.astype(np.int16, copy=False) for task, label in labels.items()}
    sample = Sample(
        subject_id=meta.subject_id,
        image=image.astype(np.float32, copy=False),
        affine=affine,
        spacing_mm=np.array(meta.spacing_mm, dtype=np.float64),
        targets=targets,
    )
    if meta.acquisition:
        sample["acquisition"] = [dict(tags) for tags in meta.acquisition]
    return sample


def decode_meta(data: bytes, *, where: str = "") -> SampleMeta:
    """Bytes of a meta.json -> SampleMeta. Raises InputError for another format version or a missing field."""
    where = f"{where}.{META}"
    try:
        raw = json.loads(data)
        check_format_version(raw, where=where)
        meta = SampleMeta.model_validate(raw)
    except ValidationError as err:
        first = err.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{key}: {first['msg']}", where=where, fix=FIX) from None
    except InputError:
        raise
    except (ValueError, RecursionError):
        raise InputError("is not JSON", where=where, fix=FIX) from None
    if not (np.isfinite(meta.spacing_mm).all() and min(meta.spacing_mm) > 0):
        raise InputError(f"spacing_mm {meta.spacing_mm} is not finite and positive", where=where, fix=FIX)
    if [len(row) for row in meta.affine] != [4] * 4 or not np.isfinite(meta.affine).all():
        raise InputError("affine is not 4 x 4 finite numbers", where=where, fix=FIX)
    if len(meta.intensity) != meta.shape[0]:
        raise InputError(f"describes {len(meta.intensity)} channels of {meta.shape[0]}", where=where, fix=FIX)
    return meta


def key_of(subject_id: str) -> str:
    """Subject id -> key: anything but letters, digits, _ and - percent-encoded. Undone by urllib.parse.unquote.

    >>> key_of("sub-01/ses.2"), unquote(key_of("sub-01/ses.2"))
    ('sub-01%2Fses%2E2', 'sub-01/ses.2')
    """
    return _escape(subject_id, LETTERS)


def label_member(task: str, suffix: str = VOXELS) -> str:
    """Task -> member name. "image" is escaped whole, so that no task can take the image's place.

    >>> label_member("tissue"), label_member("Grey.Matter"), label_member("image")
    ('tissue.chunks', '%47rey%2E%4Datter.chunks', '%69%6D%61%67%65.chunks')
    """
    return _escape(task, LOWER if task != "image" else frozenset()) + suffix


def task_of(member: str) -> str | None:
    """Member name -> task of the label map it holds, or None for the image and the meta."""
    return unquote(member.removesuffix(VOXELS)) if member.endswith(VOXELS) and member != IMAGE else None


def check_shape(found: Sequence[int], told: Sequence[int], *, where: str) -> None:
    """Raises InputError where an array has not the shape that its meta.json says."""
    if tuple(found) != tuple(told):
        raise InputError(f"has shape {tuple(found)}, its meta.json says {tuple(told)}", where=where, fix=FIX)


def _escape(text: str, plain: frozenset[str]) -> str:
    return "".join(char if char in plain else "".join(f"%{byte:02X}" for byte in char.encode()) for char in text)


def _checked(tags: Tags) -> Tags:
    """Acquisition tags are short: nothing that reads files may pass a report through to a shard by mistake."""
    for name, value in tags.items():
        is_short = isinstance(value, int | float) or (isinstance(value, str) and len(value) <= MAX_TAG_LETTERS)
        if not (TAG_NAME.fullmatch(name) and is_short):
            raise InputError(f"acquisition tag {name[:MAX_TAG_LETTERS]!r} is no short value", fix="leave the tag out")
    return dict(sorted(tags.items()))
