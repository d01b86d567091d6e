"""Time of the surface metrics, beside MONAI's three calls for the same figures on the same pairs of masks.

Axes: D H W voxels.
In: label maps of a folder, or of synthetic heads; each class is a truth, and the same with a wavy border its prediction.
Out: a dictionary for JSON.
Both work in turns, pair by pair, on one thread: what else the machine does meets both. CPU time is that of this process. Figures
are HD95, average symmetric surface distance and surface Dice of voxels, and a second time with surface Dice by area. MONAI finds
the surfaces and distances anew in each call, which is what its functions offer. Values must be equal to 1e-5.
"""

import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import ndimage

from mri_ds.data.images import read_label
from mri_ds.data.nifti import stem
from mri_ds.data.synthesis.anatomy import TISSUES, build_anatomy, draw_person
from mri_ds.errors import InputError
from mri_ds.metrics.surface import surface_figures

TARGET = 3.0  # times as fast as MONAI
TOLERANCE_MM = 1.0
WAVE_VOXELS, REACH_VOXELS = 2.0, 1.5  # of a prediction's border: smoothness, and standard deviation of how far it is off
MARGIN = 8  # voxels around a truth that its prediction may reach into
EQUAL = 1e-5
HEAD_MM = 220.0  # of the synthetic field of view
Three = tuple[float, float, float]


class Pair(NamedTuple):
    """One truth and its prediction on one grid."""

    name: str
    truth: np.ndarray
    prediction: np.ndarray
    spacing_mm: tuple[float, float, float]


def bench_metrics(
    source: Path | None = None,
    *,
    num_masks: int = 20,
    size: int = 64,
    repeats: int = 3,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """The first `num_masks` classes of the label maps in `source` (None: synthetic heads of size^3 voxels).

    Result: {"masks": n, "voxels": median of a mask, "figures": {...}, "with_area": {...}, "target": 3, "passed": ...}; the two
    with "ours" and "monai" {"cpu_ms", "wall_ms"} per pair (sum of the pairs' medians over `repeats`, by their number) and
    "cpu_ratio", "wall_ratio" (MONAI / ours). Raises InputError where MONAI or label maps are missing, RuntimeError should the two
    ever differ.
    """
    monai = _import_monai()
    pairs = list(islice(mask_pairs(source, size=size, seed=seed), num_masks))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    spent: dict[str, np.ndarray] = {}
    try:
        for done, pair in enumerate(pairs, start=1):
            for name, clocks in _compare(monai, pair, repeats).items():
                spent[name] = spent.get(name, 0) + clocks
            if progress:
                progress(done, len(pairs))
    finally:
        torch.set_num_threads(threads)
    result: dict[str, Any] = {"source": str(source) if source else "synthetic", "masks": len(pairs), "repeats": repeats}
    result["voxels"] = int(np.median([pair.truth.sum() for pair in pairs]))
    result["tolerance_mm"] = TOLERANCE_MM
    result["threads"] = 1
    result["monai"] = monai.__version__
    for kind in ("figures", "with_area"):
        ours, theirs = (1e3 * spent[f"{who}_{kind}"] / len(pairs) for who in ("ours", "monai"))
        rows = {
            who: dict(zip(("cpu_ms", "wall_ms"), found.round(3).tolist())) for who, found in (("ours", ours), ("monai", theirs))
        }
        result[kind] = rows | dict(zip(("cpu_ratio", "wall_ratio"), (theirs / ours).round(2).tolist()))
    return result | {"target": TARGET, "passed": result["figures"]["cpu_ratio"] >= TARGET}


def mask_pairs(source: Path | None, *, size: int = 64, seed: int = 0) -> Iterator[Pair]:
    """Every class of every label map, and the same made worse. Synthetic heads never end; a folder's files do."""
    for number, (name, labels, spacing_mm) in enumerate(_heads(size, seed) if source is None else _files(source)):
        for label in np.unique(labels[labels > 0]).tolist():
            truth = labels == label
            prediction = worse(truth, seed=1000 * number + label)
            if prediction.any():
                yield Pair(f"{name}:{label}", truth, prediction, spacing_mm)


def worse(mask: np.ndarray, seed: int) -> np.ndarray:
    """A mask (D, H, W) with at least one voxel, its border moved in and out by a smooth random field."""
    out, box = np.zeros_like(mask), []
    for found, extent in zip(ndimage.find_objects(mask.astype(np.uint8))[0], mask.shape):
        box.append(slice(max(0, found.start - MARGIN), min(extent, found.stop + MARGIN)))
    inside = mask[tuple(box)]
    waves = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(inside.shape), WAVE_VOXELS)
    depth = ndimage.distance_transform_edt(inside) - ndimage.distance_transform_edt(~inside)
    out[tuple(box)] = depth + REACH_VOXELS * waves / waves.std() > 0.5
    return out


def _heads(size: int, seed: int) -> Iterator[tuple[str, np.ndarray, Three]]:
    """In turns the whole head, and half of it in thick slices: objects at the border, and voxels that are no cubes."""
    edge = HEAD_MM / size
    for number, rng in enumerate(np.random.default_rng([seed, number]) for number in range(2**31)):
        tissue = build_anatomy(draw_person(rng, float(rng.uniform(20, 90))), rng, size).tissue
        labels = np.where(tissue < len(TISSUES), tissue, 0)
        if number % 2:
            yield f"half-{number}", np.ascontiguousarray(labels[: size // 2, :, ::3]), (edge, edge, 3 * edge)
        else:
            yield f"head-{number}", labels, (edge, edge, edge)


def _files(source: Path) -> Iterator[tuple[str, np.ndarray, Three]]:
    """Label maps of labelsTr/, of labels/, or else of the folder itself."""
    folder = next((source / name for name in ("labelsTr", "labels") if (source / name).is_dir()), source)
    paths = [path for path in sorted(folder.glob("*.nii*")) if stem(path) and not path.name.startswith(".")]
    if not paths:
        raise InputError(
            "holds no label map", where=folder, fix="give a folder of NIfTI label maps, or of a dataset with labelsTr/"
        )
    for path in paths:
        volume = read_label(path)
        d, h, w = volume.spacing_mm.tolist()
        yield path.name, volume.voxels, (d, h, w)


def _compare(monai: Any, pair: Pair, repeats: int) -> dict[str, np.ndarray]:
    """{who_what: (CPU s, wall s)}, each the median of the repeats, taken in turns."""
    runs: dict[str, Callable[[], Three]] = {
        "ours_figures": lambda: _ours(pair, with_area=False),
        "monai_figures": lambda: _monai(monai, pair, with_area=False),
        "ours_with_area": lambda: _ours(pair, with_area=True),
        "monai_with_area": lambda: _monai(monai, pair, with_area=True),
    }
    values, clocks = dict[str, Three](), {name: list[tuple[float, float]]() for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            cpu, wall = time.process_time(), time.perf_counter()
            values[name] = run()
            clocks[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    for kind in ("figures", "with_area"):
        if not np.allclose(values[f"ours_{kind}"], values[f"monai_{kind}"], rtol=EQUAL, atol=EQUAL):
            raise RuntimeError(f"{pair.name}: ours {values[f'ours_{kind}']}, MONAI {values[f'monai_{kind}']}")
    return {name: np.median(rows, axis=0) for name, rows in clocks.items()}


def _ours(pair: Pair, *, with_area: bool) -> Three:
    found = surface_figures(pair.truth, pair.prediction, pair.spacing_mm, tolerance_mm=TOLERANCE_MM, with_area=with_area)
    return found["hd95_mm"], found["assd_mm"], found["surface_dice_area" if with_area else "surface_dice"]


def _monai(monai: Any, pair: Pair, *, with_area: bool) -> Three:
    prediction, truth = (torch.from_numpy(mask)[None, None] for mask in (pair.prediction, pair.truth))
    common: dict[str, Any] = {"include_background": True, "spacing": list(pair.spacing_mm)}
    hd95 = monai.metrics.compute_hausdorff_distance(prediction, truth, percentile=95, **common)
    assd = monai.metrics.compute_average_surface_distance(prediction, truth, symmetric=True, **common)
    shared = monai.metrics.compute_surface_dice(
        prediction, truth, class_thresholds=[TOLERANCE_MM], use_subvoxels=with_area, **common
    )
    return hd95.item(), assd.item(), shared.item()


def _import_monai() -> Any:
    try:
        import monai
        import monai.metrics
    except ImportError:
        raise InputError("MONAI, which is measured beside ours, is not installed", fix='run: pip install "monai>=1.5"') from None
    return monai
