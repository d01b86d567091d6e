"""A cohort synthesised from label maps as files, in the folder layout that `data/layouts` reads.

Task: structure (segmentation, the classes of the label table).  One channel, int16.
Subject i of a seed is a function of (seed, i) and its label map alone; label maps take turns. Subjects of one label map are one
anatomy seen many times: to judge a network trained on them, hold out people, not these files.
"""

from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from mri_ds.config import SynthesisConfig
from mri_ds.data.nifti import write_image, write_label
from mri_ds.data.synthesis.cohort import Progress, write_cohort
from mri_ds.data.synthesis.from_labels import apply, sample_params
from mri_ds.data.synthesis.label_map import LabelMap, LabelMaps
from mri_ds.errors import InputError

TASK, CHANNEL = "structure", "synthetic"
MIN_SIZE, MAX_SIZE = 16, 512
STORED_PER_UNIT = 20.0  # of int16: the brightest tissue of 225 with its shading stays far below 32767


def synthesize_from_labels(
    labels: Path,
    out: Path,
    *,
    num_subjects: int,
    seed: int,
    size: int | None = None,
    spacing_mm: float = 1.0,
    strengths: SynthesisConfig | None = None,
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Writes images/, labels/, participants.tsv and dataset.yaml into `out` from the label maps in the folder `labels`.

    `size` voxels along each axis about the middle of the map, or None for all of it. Processes, progress and interruption are
    as in `synthesize_dataset`. Raises InputError for a folder without label maps, for numbers that cannot be, and for a folder
    that cannot be written.

    >>> synthesize_from_labels(Path("label_maps"), Path("subjects"), num_subjects=8, seed=0, size=128)  # doctest: +SKIP
    """
    for name, value, least in (("subjects", num_subjects, 1), ("seed", seed, 0), ("size", size or MIN_SIZE, MIN_SIZE)):
        if value < least:
            raise InputError(f"{name} = {value}", fix=f"choose at least {least}")
    if not 0.2 <= spacing_mm <= 20:
        raise InputError(f"spacing_mm = {spacing_mm}", fix="choose 0.2 to 20")
    maps, out = LabelMaps(labels), Path(out)
    if maps.folder.resolve() in (out.resolve(), (out / "labels").resolve()):
        raise InputError("is the folder of the label maps", where=out, fix="choose another --out")
    _checked_shape(maps[0], size, spacing_mm)  # the first unreadable map is named before a process is started
    write = partial(
        _write_subject,
        labels=maps.folder,
        out=out,
        seed=seed,
        size=size,
        spacing_mm=spacing_mm,
        strengths=strengths or SynthesisConfig(),
    )
    write_cohort(
        out,
        write,
        num_subjects=num_subjects,
        columns=["participant_id", "label_map"],
        description={
            "channels": [CHANNEL],
            "tasks": {TASK: {"kind": "segmentation", "classes": maps.table.classes}},
        },
        num_workers=num_workers,
        progress=progress,
    )


def _write_subject(
    number: int, *, labels: Path, out: Path, seed: int, size: int | None, spacing_mm: float, strengths: SynthesisConfig
) -> str:
    """Writes one subject's files and returns its row of the table."""
    maps, name = _maps(labels), f"sub-{number + 1:03d}"
    label_map = maps[number % len(maps)]
    params = sample_params(
        np.random.default_rng([seed, number]),
        label_map,
        shape=_checked_shape(label_map, size, spacing_mm),
        spacing_mm=(spacing_mm, spacing_mm, spacing_mm),
        num_channels=1,
        centre_mm=label_map.size_mm / 2,
        strengths=strengths,
        may_flip=maps.table.may_flip,
    )
    image, classes = apply(label_map, params)
    stored = np.rint(np.clip(image[0].numpy() * STORED_PER_UNIT, 0, np.iinfo(np.int16).max)).astype(np.int16)
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = -(np.array(params.view.shape) - 1) / 2 * spacing_mm
    write_image(out / "images" / f"{name}_{CHANNEL}.nii.gz", stored, affine)
    write_label(out / "labels" / f"{name}_{TASK}.nii.gz", classes.numpy(), affine)
    return f"{name}\t{label_map.name}"


def _checked_shape(label_map: LabelMap, size: int | None, spacing_mm: float) -> tuple[int, int, int]:
    """Voxels of a subject of this map: `size` each, or as many as hold all of it."""
    p, q, r = (size or int(np.ceil(mm / spacing_mm)) for mm in label_map.size_mm)
    if not MIN_SIZE <= min(p, q, r) <= max(p, q, r) <= MAX_SIZE:
        what = f"label map {label_map.name} makes {p} x {q} x {r} voxels of {spacing_mm} mm"
        raise InputError(what, fix=f"choose a size or spacing that makes {MIN_SIZE} to {MAX_SIZE} along each axis")
    return p, q, r


@lru_cache(maxsize=1)
def _maps(labels: Path) -> LabelMaps:
    return LabelMaps(labels)
