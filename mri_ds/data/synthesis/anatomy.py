"""The shapes of a synthetic head: which tissue fills each voxel.

Axes: (n, n, n) voxels of an isotropic grid, axes towards right, anterior, superior; x y z in mm from the centre of the head.
In: a Person (numbers), a generator for its fields.  Out: Anatomy, tissue ids (n, n, n) int8 and two depths in mm.
Every shape is a signed distance in mm (negative inside) in coordinates that a smooth random field has bent, so shapes stay nested
however they are deformed. The cortex folds along sulci: the zero crossings of a random field projected onto the hull.
Source: ellipsoid distance and smooth minimum as in Quilez, "distance functions" and "smooth minimum" (iquilezles.org).
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from mri_ds.data.synthesis.fields import FOV_MM, smooth_field

TISSUES = ["background", "csf", "grey", "white", "ventricles", "deep_grey", "lesion"]  # the labels
UNLABELLED = ["bone", "fat", "muscle", "eye"]  # give signal, are background in the label
AIR, CSF, GREY, WHITE, VENTRICLES, DEEP_GREY, LESION, BONE, FAT, MUSCLE, EYE = range(11)
FOLD_MM = 13.0  # knots of the folding field; broader than in life, so that gyri and sulci survive 3 mm voxels
CORTEX_MM = (7.0, 4.2)  # thickness at 20 and at 90 years
VENTRICLE_GROWTH = 3.5  # volume at 90 years over that at 20
AGE_NOISE = 6.0  # years: how far ventricles and cortex, each on its own, look older or younger than the person is

Field = np.ndarray


@dataclass(frozen=True)
class Person:
    """What is drawn of one head before any voxel exists. Lengths in mm."""

    ventricle_width: float  # relative to age 20; volume goes with its square
    cortex_mm: float
    sulcus_mm: float  # width of the gap between two banks
    sulcus_depth_mm: float
    shrinkage_mm: float  # how far the hull has left the skull
    skull_mm: float
    scalp_mm: float
    scale: np.ndarray  # (3,) relative size along x, y, z
    centre_mm: np.ndarray  # (3,)
    rotation: np.ndarray  # (3, 3) of the head in the scanner


@dataclass(frozen=True)
class Anatomy:
    """tissue: ids (n, n, n) int8; ventricle_mm: distance to the ventricles; cortex_mm: depth below the cortex, negative above."""

    tissue: Field
    ventricle_mm: Field
    cortex_mm: Field


def draw_person(rng: np.random.Generator, age: float) -> Person:
    """Ventricles and sulci widen and the cortex thins with age, each with noise of its own."""
    older = (age - 20 + rng.normal(0, AGE_NOISE, size=3)) / 70  # 0 at 20 years, 1 at 90
    cortex = CORTEX_MM[0] + (CORTEX_MM[1] - CORTEX_MM[0]) * older[1]
    return Person(
        ventricle_width=float(np.sqrt(max(0.5, 1 + (VENTRICLE_GROWTH - 1) * older[0]))),
        cortex_mm=float(cortex),
        sulcus_mm=float(3.2 + 2.5 * np.clip(older[2], 0, 1.2)),
        sulcus_depth_mm=float(rng.uniform(14, 18)),
        shrinkage_mm=float(1.5 * np.clip(older[2], 0, 1.2)),
        skull_mm=float(rng.uniform(5, 7)),
        scalp_mm=float(rng.uniform(5, 8)),
        scale=rng.normal(1, 0.04) * rng.normal(1, 0.02, size=3),
        centre_mm=rng.normal(0, [2, 2, 2]),
        rotation=Rotation.from_rotvec(rng.normal(0, 0.05, size=3)).as_matrix(),
    )


def build_anatomy(person: Person, rng: np.random.Generator, size: int) -> Anatomy:
    """Draws the fields that deform this head, then fills the voxels from the outside in: later tissues overwrite earlier ones."""
    p = _head_coordinates(person, rng, size)
    cerebrum, cerebellum, stem = _cerebrum(p), _ellipsoid(p, (0, -50, -40), (47, 28, 22)), _stem(p)
    inner_skull = _union(_union(cerebrum, cerebellum, 12), stem, 12) - 2.5
    tissue = _outside(p, person, inner_skull, smooth_field(rng, size, 12))
    tissue[inner_skull < 0] = CSF
    tissue[stem < 0] = WHITE
    folia = 6 + 2 * smooth_field(rng, size, 5)
    tissue[cerebellum < -1] = GREY
    tissue[cerebellum < -1 - folia] = WHITE

    hull = cerebrum + person.shrinkage_mm
    below_pia = _below_pia(p, person, hull, smooth_field(rng, size, FOLD_MM))
    below_cortex = below_pia - person.cortex_mm
    tissue[below_pia > 0] = GREY
    tissue[below_cortex > 0] = WHITE
    tissue[_deep_grey(p, person) & (below_cortex > 0)] = DEEP_GREY
    ventricles = _ventricles(p, person)
    tissue[ventricles < 0] = VENTRICLES
    return Anatomy(tissue, ventricles, np.where(hull < 0, below_cortex, -1))


def _head_coordinates(person: Person, rng: np.random.Generator, size: int) -> list[Field]:
    """x, y, z (n, n, n) float32 of each voxel in the bent coordinates of a standard head."""
    axis = ((np.arange(size) + 0.5) / size - 0.5) * FOV_MM
    grid = np.meshgrid(axis, axis, axis, indexing="ij", sparse=True)
    to_head = (person.rotation / person.scale).T  # inverse of rotation @ diag(scale)
    moved = [g - c for g, c in zip(grid, person.centre_mm)]
    p = []
    for row in to_head:
        straight = sum((weight * g).astype(np.float32) for weight, g in zip(row, moved))
        p.append(straight + 2.6 * smooth_field(rng, size, 36) + 0.6 * smooth_field(rng, size, 14))
    return p


def _cerebrum(p: list[Field]) -> Field:
    """An egg whose floor rises towards the front, the back (where the cerebellum lies) and the middle."""
    x, y, z = p
    floor = -38 + 22 * _step(-y - 26, 6) + 16 * _step(y - 34, 7) + 16 * np.exp(-((x / 14) ** 2))
    return np.maximum(_ellipsoid(p, (0, 0, 8), (63, 79, 60)), 0.9 * (floor - z))


def _stem(p: list[Field]) -> Field:
    x, y, z = p
    pons = _ellipsoid(p, (0, -22, -28), (15, 13, 15))
    cord = np.maximum(np.hypot(x, y + 27 + 0.12 * (z + 40)) - 9, z + 8)
    return _union(pons, cord, 6)


def _below_pia(p: list[Field], person: Person, hull: Field, folds: Field) -> Field:
    """Depth below the nearest pial surface: the hull, a sulcus, the fissure between the hemispheres, the lateral fissures."""
    x, y, z = p
    gap = person.sulcus_mm / 2
    sulci = _sheet_distance(_project(folds, p), FOV_MM / len(folds))
    depth = person.sulcus_depth_mm
    sulcus = np.hypot(sulci, np.maximum(0, -hull - depth))
    callosum = np.sqrt(((y + 2) / 48) ** 2 + ((z - 2) / 33) ** 2)
    midline = np.hypot(x, 33 * np.maximum(0, 1 - callosum))
    beyond = np.maximum(0, 36 - np.abs(x)) + np.maximum(0, y - 34) + np.maximum(0, -30 - y)
    lateral = np.hypot(0.96 * (z + 4 - 0.25 * y), beyond)
    return np.minimum(-hull, np.minimum(np.minimum(sulcus, lateral), midline) - gap)


def _project(field: Field, p: list[Field]) -> Field:
    """The field's values where the ray from the centre through each voxel leaves a standard hull, so that sulci run inwards."""
    x, y, z = p
    reach = np.sqrt((x / 63) ** 2 + (y / 79) ** 2 + ((z - 8) / 60) ** 2)
    stretch = 1 / np.maximum(reach, 0.15)
    at = [(c * stretch / FOV_MM + 0.5) * len(field) - 0.5 for c in (x, y, z)]
    return map_coordinates(field, at, order=1, mode="nearest", output=np.float32)


def _sheet_distance(field: Field, voxel_mm: float) -> Field:
    """Distance to the field's nearest zero crossing, to first order."""
    slope = np.sqrt(sum(np.square(np.gradient(field, voxel_mm, axis=axis)) for axis in range(3)))
    return np.abs(field) / np.maximum(slope, 0.02)


def _deep_grey(p: list[Field], person: Person) -> Field:
    x, y, z = np.abs(p[0]), p[1], p[2]
    aside = 5 * (person.ventricle_width - 1)
    thalamus = _ellipsoid([x - aside, y, z + aside / 2], (10.5, -12, -3), (9.5, 16, 9.5))
    lentiform = _ellipsoid([x - aside, y, z], (26, 4, -2), (8.5, 18, 11))
    caudate = _ellipsoid([x - 1.6 * aside, y, z], (14, 19, 5), (7, 12.5, 10))
    return np.minimum(np.minimum(thalamus, lentiform), caudate) < 0


def _ventricles(p: list[Field], person: Person) -> Field:
    """Two lateral ventricles, bent over the thalamus and spread behind; the third between; the fourth before the cerebellum."""
    x, y, z = np.abs(p[0]), p[1], p[2]
    width = person.ventricle_width
    half = 5 * width
    spread = 0.2 * np.maximum(0, -y - 5)
    bend = (y + 3) ** 2 / 110
    lateral = _ellipsoid([x - spread, y, z + bend], (1.2 + half, -4, 11), (half, 34, 6.5 * width))
    third = _ellipsoid(p, (0, -6, -5), (1.9 * width, 12, 8))
    fourth = _ellipsoid(p, (0, -36, -34), (5, 4.5, 7))
    return np.minimum(np.minimum(lateral, third), fourth)


def _outside(p: list[Field], person: Person, inner_skull: Field, texture: Field) -> Field:
    """Air, scalp, muscle, eyes and bone: everything that no label names."""
    x, y, z = p
    outer_skull = inner_skull - person.skull_mm
    neck = np.maximum(60 * (np.hypot(x / 52, (y + 22) / 58) - 1), z + 40)
    face = _ellipsoid(p, (0, 42, -62), (54, 44, 48))
    head = _union(outer_skull - person.scalp_mm, np.minimum(neck, face), 14)
    tissue = np.zeros(x.shape, dtype=np.int8)
    tissue[head < 0] = FAT
    tissue[(head < -4) & (texture < 0.9)] = MUSCLE
    tissue[outer_skull < 0] = BONE
    airway = np.maximum(_ellipsoid(p, (0, 52, -50), (9, 26, 14)), -_ellipsoid(p, (0, 52, -46), (1.5, 26, 20)))
    tissue[(airway < 0) & (outer_skull > 0)] = AIR
    eyes = np.sqrt((np.abs(x) - 32) ** 2 + (y - 66) ** 2 + (z + 32) ** 2) - 12
    tissue[(eyes < 0) & (outer_skull > -2)] = EYE
    return tissue


def _ellipsoid(p: list[Field], centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Field:
    """Signed distance, to first order."""
    scaled = [(c - m) / r for c, m, r in zip(p, centre, radii)]
    near = np.sqrt(sum(s * s for s in scaled))
    slope = np.sqrt(sum((s / r) ** 2 for s, r in zip(scaled, radii)))
    return near * (near - 1) / np.maximum(slope, 1e-6)


def _union(a: Field, b: Field, blend_mm: float) -> Field:
    """Smooth minimum of two distances."""
    overlap = np.maximum(blend_mm - np.abs(a - b), 0)
    return np.minimum(a, b) - overlap * overlap / (4 * blend_mm)


def _step(x: Field, width_mm: float) -> Field:
    return 0.5 + 0.5 * np.tanh(x / width_mm)
