"""Where the voxels of a NIfTI file lie: its two forms, their units, and whether they agree.

Out: affine (4, 4), (i, j, k, 1) -> world (x right, y anterior, z superior, 1) in mm.
The s-form rules unless its code is 0; then the q-form, unless its code is 0 too; then voxel sizes alone, read as ANALYZE files
are: i runs to the left, the centre is the origin.
Source: nifti1.h (2003), sections "3D image orientation" methods 1 to 3 and "units".
"""

from pathlib import Path

import numpy as np

from mri_ds.data.nifti.header import Header
from mri_ds.errors import InputError

UNIT_MM = {1: 1000.0, 3: 1e-3}  # xyzt_units: metres, micrometres; 0 (unknown) and 2 are millimetres
MIN_VOLUME_FRACTION = 1e-3  # |det| of the unit-length affine columns: under this the axes lie in one plane
MAX_ENTRY = 1e8  # in the file's unit: 100 m in micrometres
HALF_TURN = 3 * float(np.finfo(np.float32).eps)  # 1 - (b, c, d)^2 below this is rounding (as nibabel)
MAX_QUATERNION = 1.001  # squared length of (b, c, d): over 1 by rounding it is a half turn, over this it is damage
SAME_PLACE = 0.1  # of the smallest voxel edge: how far apart two forms may place a corner and still agree
SAME_SIZE = 0.01  # relative difference of two voxel sizes that is no difference
SPACES = {1: "scanner", 2: "aligned", 3: "Talairach", 4: "MNI152", 5: "template"}  # what a form's code says
FIX = "write a valid s-form, or set sform_code to 0 where the q-form is right"


def place(header: Header, where: Path) -> tuple[np.ndarray, list[str]]:
    """Affine (4, 4) float64 in mm, and a note for each thing about it that a person should know.

    Raises InputError where the form that rules is not finite, singular, or of no scan's size.
    """
    record = header.record
    s_code, q_code = int(record["sform_code"]), int(record["qform_code"])
    if s_code > 0:
        affine = _checked(s_form(record), where)
        notes = _compare(affine, record, header.shape[:3]) if q_code > 0 else _compare_sizes(affine, record)
    elif q_code > 0:
        affine, notes = _checked(q_form(record), where), []
    else:
        affine = _checked(voxel_sizes(record, header.shape[:3]), where)
        notes = ["neither q-form nor s-form is set: left and right are a guess (as ANALYZE: the first axis runs to the left)"]
    return _in_mm(affine, record), [f"{where}: {note}" for note in notes]


def s_form(record: np.ndarray) -> np.ndarray:
    """The affine as it stands in the header (method 3); it may be sheared."""
    return np.array([record["srow_x"], record["srow_y"], record["srow_z"], [0, 0, 0, 1]], dtype=np.float64)


def q_form(record: np.ndarray) -> np.ndarray:
    """The affine of a unit quaternion (a, b, c, d), voxel sizes and offset (method 2). NaN where there is none."""
    b, c, d = (float(record[f"quatern_{axis}"]) for axis in "bcd")
    rest = b * b + c * c + d * d
    if not rest <= MAX_QUATERNION:
        return np.full((4, 4), np.nan)
    if rest > 1:
        b, c, d = (value / np.sqrt(rest) for value in (b, c, d))
    a = np.sqrt(1 - rest) if 1 - rest > HALF_TURN else 0.0
    turn = [
        [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
    ]
    sizes = np.abs(record["pixdim"][1:4].astype(np.float64))
    sizes[2] *= -1 if record["pixdim"][0] == -1 else 1  # qfac: whether k runs against the right-hand rule
    affine = np.eye(4)
    with np.errstate(invalid="ignore"):  # 0 times infinity: the NaN is reported
        affine[:3, :3] = np.array(turn) * sizes
    affine[:3, 3] = [record[f"qoffset_{axis}"] for axis in "xyz"]
    return affine


def voxel_sizes(record: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The affine of voxel sizes alone (method 1), i to the left as in ANALYZE, centred."""
    sizes = np.abs(record["pixdim"][1:4].astype(np.float64)) * [-1, 1, 1]
    affine = np.diag([*sizes, 1.0])
    affine[:3, 3] = -sizes * (np.array(shape) - 1) / 2
    return affine


def _checked(affine: np.ndarray, where: Path) -> np.ndarray:
    if fault := _fault(affine):
        raise InputError(f"affine {fault}", where=where, fix=FIX)
    return affine


def _fault(affine: np.ndarray) -> str:
    """What makes it no affine of a scan; "" for nothing."""
    if not np.isfinite(affine).all():
        return "holds NaN or infinity, or its quaternion is none"
    if np.abs(affine).max() > MAX_ENTRY:
        return f"holds {affine.flat[np.abs(affine).argmax()]:g}"
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if lengths.min() < 1 / MAX_ENTRY or abs(np.linalg.det(affine[:3, :3] / lengths)) < MIN_VOLUME_FRACTION:
        return f"is singular (rows {affine[:3, :3].round(4).tolist()})"
    return ""


def _in_mm(affine: np.ndarray, record: np.ndarray) -> np.ndarray:
    unit = UNIT_MM.get(int(record["xyzt_units"]) & 7, 1.0)
    return np.diag([unit, unit, unit, 1.0]) @ affine


# ---- do the two forms agree? ---------------------------------------------------------------------------------------


def _compare(s_affine: np.ndarray, record: np.ndarray, shape: tuple[int, ...]) -> list[str]:
    """A note on how far the q-form is from the s-form, if it is. A broken q-form is a note too: nothing was read from it."""
    q_affine = q_form(record)
    if _fault(q_affine):
        return ["the q-form is no valid form; the s-form is used"]
    s_mm, q_mm = _in_mm(s_affine, record), _in_mm(q_affine, record)
    apart_mm = corner_distance_mm(s_mm, q_mm, shape)
    if apart_mm <= SAME_PLACE * np.linalg.norm(s_mm[:3, :3], axis=0).min():
        return []
    s_space, q_space = (SPACES.get(int(record[code]), "other") for code in ("sform_code", "qform_code"))
    angle, is_mirrored = turn_between(s_mm, q_mm)
    first_mm = np.linalg.norm(s_mm[:3, 3] - q_mm[:3, 3])
    how = "mirror each other (LEFT AND RIGHT DIFFER)" if is_mirrored else f"are turned by {angle:.2f} degrees"
    where = f"place the first voxel {first_mm:.3g} mm apart and some corner {apart_mm:.3g} mm"
    return [f"s-form ({s_space}) and q-form ({q_space}) {how} and {where}; the s-form is used"]


def _compare_sizes(s_affine: np.ndarray, record: np.ndarray) -> list[str]:
    """Without a q-form, pixdim still gives voxel sizes, which some programs believe instead of the s-form's."""
    sizes, pixdim = np.linalg.norm(s_affine[:3, :3], axis=0), np.abs(record["pixdim"][1:4].astype(np.float64))
    if np.allclose(sizes, pixdim, rtol=SAME_SIZE, atol=0):
        return []
    s_text, p_text = (" x ".join(f"{size:.4g}" for size in three) for three in (sizes, pixdim))
    return [f"voxels are {s_text} by the s-form and {p_text} by pixdim; the s-form is used"]


def corner_distance_mm(one: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    """The largest distance between the same voxel's places under two affines: it is at a corner of the volume."""
    corners = np.array(np.meshgrid(*([0, n - 1] for n in shape), [1], indexing="ij"), dtype=float).reshape(4, -1)
    return float(np.linalg.norm(((one - other) @ corners)[:3], axis=0).max())


def turn_between(one: np.ndarray, other: np.ndarray) -> tuple[float, bool]:
    """Degrees from the axes of one affine to the other's, shear and sizes left aside, and whether one mirrors the other."""
    turns = []
    for affine in (one, other):
        left, _, right = np.linalg.svd(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
        turns.append(left @ right)  # the rotation nearest to it
    between = turns[0] @ turns[1].T
    is_mirrored = np.linalg.det(between) < 0
    cosine = (np.trace(-between if is_mirrored else between) - 1) / 2
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))), bool(is_mirrored)
