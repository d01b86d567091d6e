"""A user's own Albumentations pipeline as one transform of image and labels; the package is imported only here.

Axes: C channel, D H W voxels.  In: image (C, D, H, W) float32, labels {task: (D, H, W) integer}.  Out: the same.
Albumentations sees `volume` (D, H, W, C) and, where there are labels, `mask3d` (D, H, W, K). Its 2-D transforms act on all
(H, W) planes alike. It works on the CPU, in the loader's workers, after everything of transform.py.
Install: pip install "albumentations>=2.0.8" (MIT, no longer maintained) or albumentationsx, its successor (AGPL); both go by the
same import name. Neither may tell anyone of its use here: version check and telemetry are off.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mri_ds.errors import InputError

PIP = 'pip install "albumentations>=2.0.8"'


def load_pipeline(path: str | Path) -> Any:
    """The Compose that `albumentations.save(pipeline, path)` wrote, as .json or (data_format="yaml") .yaml.

    Such a file names transforms and their numbers; no code comes from it. Raises InputError for a missing package or file, or one
    that is no pipeline.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    os.environ.setdefault("ALBUMENTATIONS_NO_TELEMETRY", "1")
    try:
        import albumentations
    except ImportError:
        raise InputError("Albumentations, which this pipeline needs, is not installed", where=path, fix=f"run: {PIP}") from None
    kind = "yaml" if Path(path).suffix in {".yaml", ".yml"} else "json"
    try:
        pipeline = albumentations.load(path, data_format=kind)
    except OSError as err:
        raise InputError(err.strerror or str(err), where=path, fix="give a file that albumentations.save wrote") from None
    except Exception as err:  # whatever its readers and constructors raise
        what = f"is no Albumentations pipeline: {type(err).__name__}: {err}"
        raise InputError(what, where=path, fix="write it with albumentations.save(pipeline, path)") from None
    if not isinstance(pipeline, albumentations.BaseCompose):
        raise InputError("holds a single transform", where=path, fix="save an albumentations.Compose of it")
    return pipeline


def apply_pipeline(pipeline: Any, image: Tensor, labels: Mapping[str, Tensor], *, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The pipeline's variation of a sample, a function of the sample and `seed` (0 to 2^32 - 1); inputs are left alone.

    Raises InputError where the pipeline fails, changes the shape, makes voxels infinite, or gives labels a value they had not
    (background, 0, is allowed: it comes in from beyond the border).
    """
    maps = (
        np.stack([label.numpy(force=True) for label in labels.values()], axis=-1) if labels else np.zeros((*image.shape[1:], 0))
    )
    data: dict[str, np.ndarray] = {"volume": np.ascontiguousarray(image.numpy(force=True).transpose(1, 2, 3, 0))}
    if labels:
        data["mask3d"] = maps.astype(np.float32)  # the one type that all of its transforms take and that holds ids up to 2^24
    pipeline.set_random_seed(seed)
    try:
        varied = pipeline(**data)
    except Exception as err:
        what = f"the Albumentations pipeline fails on a volume: {type(err).__name__}: {err}"
        raise InputError(what, fix="leave out transforms that do not know volume and mask3d") from None
    volume, masks = varied["volume"], varied.get("mask3d", maps)
    _check(data["volume"], volume, maps, masks)
    result = torch.from_numpy(np.ascontiguousarray(volume.transpose(3, 0, 1, 2), dtype=np.float32)).to(image.device)
    moved = {
        name: torch.from_numpy(np.ascontiguousarray(masks[..., k])).to(label) for k, (name, label) in enumerate(labels.items())
    }
    return result, moved


def _check(before: np.ndarray, after: np.ndarray, labels: np.ndarray, masks: np.ndarray) -> None:
    if after.shape != before.shape or masks.shape != labels.shape:
        what = f"the Albumentations pipeline turns {before.shape[:3]} voxels into {after.shape[:3]}"
        raise InputError(what, fix="leave out crops and padding: data.patch sets the size")
    if not np.isfinite(after).all():
        raise InputError("the Albumentations pipeline makes voxels infinite or NaN", fix="leave out what expects values in 0..1")
    for label, mask in zip(np.moveaxis(labels, -1, 0), np.moveaxis(masks, -1, 0)):
        if made_up := sorted(set(np.unique(mask).tolist()) - set(np.unique(label).tolist()) - {0}):
            what = f"the Albumentations pipeline gives labels the values {made_up[:5]}, which they had not"
            raise InputError(what, fix="set mask_interpolation and fill_mask to 0 (nearest, background)")
