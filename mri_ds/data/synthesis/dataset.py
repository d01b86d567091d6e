"""A cohort of synthetic subjects as files, in the folder layout that `data/layouts` reads.

Tasks: tissue (segmentation), lesion (classification: none, few, many), age (regression, years).
Subject i of a seed is a function of (seed, i) alone, whatever the number of subjects and processes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from scipy.ndimage import correlate1d
from scipy.spatial.transform import Rotation

from mri_ds.data.nifti import write_image, write_label
from mri_ds.data.synthesis.anatomy import LESION, TISSUES, build_anatomy, draw_person
from mri_ds.data.synthesis.cohort import write_cohort
from mri_ds.data.synthesis.contrast import CHANNELS, NUM_SCANNERS, scan, scanner
from mri_ds.data.synthesis.fields import FOV_MM
from mri_ds.data.synthesis.lesions import GRADES, add_lesions
from mri_ds.errors import InputError

MIN_SIZE = 16  # voxels of 12 mm: under this no anatomy is left
AGE_YEARS = (20.0, 90.0)
THICK_SLICES_PROB = 0.25  # slices twice as thick as voxels are wide
OBLIQUE_PROB = 0.25  # rotated against the scanner's axes
TURNED_PROB = 0.25  # stored in another order and direction of axes
SLICE_PROFILE = [0.25, 0.5, 0.25]


@dataclass(frozen=True)
class Subject:
    """images (C, D, H, W) float32, labels (D, H, W) int8 with the classes of TISSUES, affine (4, 4) to RAS mm."""

    images: np.ndarray
    labels: np.ndarray
    affine: np.ndarray
    age: float
    lesion: str
    scanner: int


def synthesize_subject(number: int, *, seed: int, size: int) -> Subject:
    """Subject `number` of a seed on a grid of `size` voxels over 190 mm, before slices are made thick."""
    rng = np.random.default_rng([seed, number])
    age, lesion = float(rng.uniform(*AGE_YEARS)), GRADES[number % len(GRADES)]
    site = int(rng.integers(NUM_SCANNERS))
    anatomy = build_anatomy(draw_person(rng, age), rng, size)
    tissue = add_lesions(anatomy, lesion, rng)
    images = scan(tissue, scanner(site), rng)
    labels = np.where(tissue > LESION, 0, tissue)
    return Subject(*_place(images, labels, rng), age=round(age, 1), lesion=lesion, scanner=site)


def synthesize_dataset(
    out: Path,
    *,
    num_subjects: int,
    seed: int,
    size: int = 96,
    num_workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes images/, labels/, participants.tsv and dataset.yaml into `out`; the table last, so that it marks a whole cohort.

    `num_workers` processes (None: one per core) share the subjects; `progress(done, total)` is called after each of them.
    An interrupted call leaves no table, no half-written file that looks whole, and no process; it can be repeated.
    Raises InputError for a number of subjects, seed or size that cannot be, and for a folder that cannot be written.
    """
    for name, value, least in (("subjects", num_subjects, 1), ("seed", seed, 0), ("size", size, MIN_SIZE)):
        if value < least:
            raise InputError(f"{name} = {value}", fix=f"choose at least {least}")
    tasks = {
        "tissue": {"kind": "segmentation", "classes": TISSUES},
        "lesion": {"kind": "classification", "classes": GRADES},
        "age": {"kind": "regression", "unit": "years"},
    }
    write_cohort(
        Path(out),
        partial(_write_subject, out=Path(out), seed=seed, size=size),
        num_subjects=num_subjects,
        columns=["participant_id", "age", "lesion", "scanner"],
        description={"channels": CHANNELS, "tasks": tasks},
        num_workers=num_workers,
        progress=progress,
    )


def _write_subject(number: int, *, out: Path, seed: int, size: int) -> str:
    """Writes one subject's files and returns its row of the table."""
    subject, name = synthesize_subject(number, seed=seed, size=size), f"sub-{number + 1:03d}"
    for channel, image in zip(CHANNELS, subject.images, strict=True):
        write_image(out / "images" / f"{name}_{channel}.nii.gz", np.rint(image).astype(np.int16), subject.affine)
    write_label(out / "labels" / f"{name}_tissue.nii.gz", subject.labels, subject.affine)
    return f"{name}\t{subject.age}\t{subject.lesion}\tscanner{subject.scanner}"


def _place(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Slices, obliquity and storage order: voxels as a scanner would store them, and their affine."""
    size = labels.shape[0]
    affine = np.diag([FOV_MM / size] * 3 + [1.0])
    affine[:3, 3] = FOV_MM / size / 2 - FOV_MM / 2
    if rng.random() < THICK_SLICES_PROB:
        images, labels, affine = _thick_slices(images, labels, affine, axis=int(rng.integers(3)))
    if rng.random() < OBLIQUE_PROB:
        turn = np.eye(4)
        turn[:3, :3] = Rotation.from_rotvec(rng.uniform(-0.25, 0.25, size=3)).as_matrix()
        affine = turn @ affine
    if rng.random() < TURNED_PROB:
        images, labels, affine = _turned(images, labels, affine, order=rng.permutation(3), flips=rng.integers(2, size=3))
    return np.ascontiguousarray(images), np.ascontiguousarray(labels), affine


def _thick_slices(images: np.ndarray, labels: np.ndarray, affine: np.ndarray, *, axis: int) -> tuple[np.ndarray, ...]:
    """Every second slice, each averaged with its neighbours; the label is that of its middle."""
    kept = [slice(None)] * 3
    kept[axis] = slice(None, None, 2)
    profile = correlate1d(images, SLICE_PROFILE, axis=axis + 1, mode="nearest")
    affine = affine.copy()
    affine[:3, axis] *= 2
    return profile[(slice(None), *kept)], labels[tuple(kept)], affine


def _turned(
    images: np.ndarray, labels: np.ndarray, affine: np.ndarray, *, order: np.ndarray, flips: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Axes in another order, some backwards; the affine follows, so every voxel keeps its place."""
    images, labels = images.transpose(0, *(order + 1)), labels.transpose(order)
    change = np.zeros((4, 4))
    change[3, 3] = 1
    for new, (old, flip) in enumerate(zip(order, flips, strict=True)):
        change[old, new] = -1 if flip else 1
        change[old, 3] = labels.shape[new] - 1 if flip else 0
    backwards = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
    return images[(slice(None), *backwards)], labels[backwards], affine @ change
