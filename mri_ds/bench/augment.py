"""How long a variation of one sample takes, beside MONAI's Compose of the same list.

Both work on the same volume and label, in turns, on one thread: what else the machine does meets both. CPU time is that of this
process, so other processes do not count; wall time is given too. MONAI is set up as its users are told to: one dictionary
Compose, lazy=True, so that crop, turns, flips and affine map are resampled once; nearest for labels; the same chances and about
the same strengths. What MONAI has no transform for (motion, ghosting, channel dropout) is timed apart.
"""

import time
from collections.abc import Callable
from statistics import mean, median
from typing import Any

import numpy as np
import torch

from mri_ds.augment.transform import AUGMENTS, apply, sample_params
from mri_ds.config import AugmentConfig
from mri_ds.errors import InputError

MARGIN = 16  # voxels that the source is longer than the crop
STRENGTH = AugmentConfig(
    quarter_turn=1, shear=0.05, translate_mm=5, grid_distortion=0.2, motion_mm=5, blur_mm=1, low_resolution=1, gibbs=0.5,
    ghosting=0.5, spike=0.5, rician_noise=0.1, channel_dropout=0.3,
).strength  # fmt: skip
Run = Callable[[], object]


def bench_augment(
    *, size: int = 96, channels: int = 1, repeats: int = 5, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Times per sample in ms, ours and MONAI's, on a volume of (size + MARGIN)^3 cropped to size^3 with one label map.

    Result: {"size", "channels", "repeats", "threads", "together": {...}, "configured": {...}, "apart": {row of AUGMENTS: {...}}}.
    `together` has every row that both have at chance 1, `configured` at the chances of AugmentConfig (4 x repeats samples),
    `apart` each one alone; each with "ours" and "monai" {"cpu_ms", "wall_ms"} and "cpu_ratio", "wall_ratio" (MONAI / ours).
    Medians, but means for `configured`, where samples differ. Raises InputError where MONAI is not installed.
    """
    monai = _import_monai()
    image, label = _volume(size + MARGIN, channels, seed)
    sample = {"image": image, "label": label[None]}
    chances = AugmentConfig().prob.model_dump()
    peers = _peers(monai.transforms, dict.fromkeys(AUGMENTS, 1.0))
    shared = [name for name in AUGMENTS if name in peers]
    rng = np.random.default_rng(seed)
    threads, done, total = torch.get_num_threads(), 0, len(AUGMENTS) + 2

    def ours(names: list[str], prob: dict[str, float]) -> Run:
        strength = {knob: STRENGTH[knob] for name in names for knob in AUGMENTS[name].knobs}
        return lambda: apply(image, {"label": label}, _draw(rng, image, size, strength, prob))

    def theirs(transforms: list[Any]) -> Run:
        crop = monai.transforms.RandSpatialCropd(["image", "label"], roi_size=(size,) * 3, random_size=False)
        compose = _compose(monai.transforms, [crop, *transforms], seed)
        return lambda: compose(dict(sample))

    def count(result: dict[str, Any]) -> dict[str, Any]:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)
        return result

    torch.set_num_threads(1)
    try:
        together = count(_compare(ours(shared, {}), theirs(_flat(peers)), repeats, median))
        usual = _peers(monai.transforms, chances)
        configured = count(_compare(ours(shared, chances), theirs(_flat(usual)), 4 * repeats, mean))
        apart = {
            name: count(_compare(ours([name], {}), theirs(peers[name]) if name in peers else None, repeats, median))
            for name in AUGMENTS
        }
    finally:
        torch.set_num_threads(threads)
    facts = {"size": size, "channels": channels, "repeats": repeats, "threads": 1, "monai": monai.__version__}
    return {**facts, "together": together, "configured": configured, "apart": apart}


def _draw(rng: np.random.Generator, image: torch.Tensor, size: int, strength: dict[str, float], prob: dict[str, float]) -> Any:
    """The dice of one sample: drawing them is part of the time."""
    return sample_params(
        rng, shape=(size,) * 3, spacing_mm=(1, 1, 1), num_channels=len(image), strength=strength, prob=prob,
        flip_axes=(0, 1, 2), source_shape=image.shape[1:],
    )  # fmt: skip


def _compare(ours: Run, monai: Run | None, repeats: int, average: Callable[[list[float]], float]) -> dict[str, Any]:
    """Both in turns; the first round warms up and does not count."""
    runs = {"ours": ours} if monai is None else {"ours": ours, "monai": monai}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for round_ in range(repeats + 1):
        for name, run in runs.items():
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            if round_:
                times[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    result: dict[str, Any] = {}
    for name, pairs in times.items():
        cpu_s, wall_s = (average([pair[i] for pair in pairs]) for i in (0, 1))
        result[name] = {"cpu_ms": round(cpu_s * 1e3, 2), "wall_ms": round(wall_s * 1e3, 2)}
    if monai is not None:
        for clock in ("cpu", "wall"):
            ratio = result["monai"][f"{clock}_ms"] / max(result["ours"][f"{clock}_ms"], 1e-3)
            result[f"{clock}_ratio"] = round(ratio, 2)
    return result


def _peers(transforms: Any, prob: dict[str, float]) -> dict[str, list[Any]]:
    """For each row of AUGMENTS that MONAI has: its transforms, in an order that lets lazy ones be fused."""
    both, modes = ["image", "label"], ["bilinear", "nearest"]
    turn = np.deg2rad(STRENGTH["rotate_deg"])
    shift, slant, zoom = STRENGTH["translate_mm"], STRENGTH["shear"], STRENGTH["scale"]
    cells, bias, low = STRENGTH["grid_distortion"], STRENGTH["bias_field"], 1 / (1 + STRENGTH["low_resolution"])
    gamma, contrast = STRENGTH["gamma"], STRENGTH["contrast"]
    blur = (0.01, STRENGTH["blur_mm"])
    t, p = transforms, prob
    return {
        "flip": [t.RandFlipd(both, prob=p["flip"] * STRENGTH["flip"], spatial_axis=axis) for axis in range(3)],
        "quarter_turn": [t.RandRotate90d(both, prob=p["quarter_turn"], max_k=3)],
        "affine": [
            t.RandAffined(
                both, prob=p["affine"], rotate_range=(turn,) * 3, shear_range=(slant,) * 6, translate_range=(shift,) * 3,
                scale_range=(zoom,) * 3, mode=modes, padding_mode="border",
            )
        ],
        "elastic": [  # a field of about the same deviation (1 mm) and smoothness as ours with its defaults
            t.Rand3DElasticd(both, (5, 7), (50, 150), prob=p["elastic"], mode=modes, padding_mode="border")
        ],
        "grid_distortion": [
            t.RandGridDistortiond(
                both, num_cells=5, prob=p["grid_distortion"], distort_limit=(-cells, cells), mode=modes, padding_mode="border"
            )
        ],
        "bias_field": [t.RandBiasFieldd(["image"], degree=3, coeff_range=(0.0, bias / 4), prob=p["bias_field"])],
        "gamma": [t.RandAdjustContrastd(["image"], prob=p["gamma"], gamma=(float(np.exp(-gamma)), float(np.exp(gamma))))],
        "contrast": [
            t.RandScaleIntensityd(["image"], factors=contrast, prob=p["contrast"]),
            t.RandShiftIntensityd(["image"], offsets=contrast / 2, prob=p["contrast"]),
        ],
        "blur": [t.RandGaussianSmoothd(["image"], sigma_x=blur, sigma_y=blur, sigma_z=blur, prob=p["blur"])],
        "low_resolution": [t.RandSimulateLowResolutiond(["image"], prob=p["low_resolution"], zoom_range=(low, 1.0))],
        "gibbs": [t.RandGibbsNoised(["image"], prob=p["gibbs"], alpha=(0.0, STRENGTH["gibbs"]))],
        "spike": [t.RandKSpaceSpikeNoised(["image"], prob=p["spike"])],
        "noise": [t.RandGaussianNoised(["image"], prob=p["noise"], std=STRENGTH["noise"])],
        "rician_noise": [t.RandRicianNoised(["image"], prob=p["rician_noise"], std=STRENGTH["rician_noise"], sample_std=True)],
    }  # fmt: skip


def _compose(transforms: Any, rows: list[Any], seed: int) -> Any:
    """Without the override a lazy RandAffined reads labels linearly, whatever mode it was given (seen in MONAI 1.6.1)."""
    return transforms.Compose(rows, lazy=True, overrides={"label": {"mode": "nearest"}}).set_random_state(seed)


def _flat(groups: dict[str, list[Any]]) -> list[Any]:
    return [transform for group in groups.values() for transform in group]


def _volume(size: int, channels: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A normalised image (C, size, size, size) of a bright ball in noise and its label map int16."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.linspace(-1, 1, size).square()
    ball = (place[:, None, None] + place[:, None] + place) < 0.5
    image = ball + 0.1 * torch.randn((channels, size, size, size), generator=generator)
    return (image - image.mean()) / image.std(), ball.to(torch.int16)


def _import_monai() -> Any:
    try:
        import monai
        import monai.transforms
    except ImportError:
        raise InputError("MONAI, which is measured beside ours, is not installed", fix='run: pip install "monai>=1.5"') from None
    return monai
