"""A case as small .nii.gz texts for the viewer: image, and truth, prediction and where they differ, of each segmentation.

Axes: C channels, D H W voxels.
In: a Sample in canonical orientation and its predictions.  Out: a dictionary of base64 texts.
Above MAX_VOXELS the case is cropped to the structures (or to its body, where there are none) and, if that is not enough,
resampled to larger voxels, which its `told` says. Grey values keep 256 levels between the 0.1st and 99.9th percentile.
"""

import base64
import gzip
from collections.abc import Mapping
from typing import Any

import nibabel as nib
import numpy as np

from mri_ds.data.preprocess import to_grid
from mri_ds.data.preprocess.foreground import Box, crop, foreground_box
from mri_ds.inference.picture import COLOURS
from mri_ds.inference.subject import LabelMap, Prediction
from mri_ds.sample import Sample

MAX_VOXELS = 2**21  # 128^3
MARGIN_MM = 15.0
DIFFERENCES = (("missed", "#D55E00"), ("invented", "#56B4E9"), ("other class", "#F0E442"))


def viewer_case(sample: Sample, predictions: Mapping[str, Prediction], *, max_voxels: int = MAX_VOXELS) -> dict[str, Any]:
    """{"image", "tasks": [{"name", "prediction", "truth" and "difference" where labelled, "labels": [[name, colour]]}],
    "differences": [[name, colour]], "told"}; labels without the background.

    Only the first channel is shown.
    """
    targets: dict[str, Any] = {}
    names = [name for name, prediction in predictions.items() if isinstance(prediction, LabelMap)]
    for name in names:
        targets[f"prediction/{name}"] = predictions[name].labels  # type: ignore[union-attr]
        if name in sample["targets"]:
            targets[f"truth/{name}"] = sample["targets"][name]
    seen = Sample(**{**sample, "image": sample["image"][:1], "targets": targets})  # type: ignore[typeddict-item]
    seen, told = fit(seen, max_voxels)
    tasks = []
    for name in names:
        classes = predictions[name].classes[1:]  # type: ignore[union-attr]
        found, truth = seen["targets"][f"prediction/{name}"], seen["targets"].get(f"truth/{name}")
        labels = [[label, COLOURS[k % len(COLOURS)]] for k, label in enumerate(classes)]
        entry = {"name": name, "labels": labels, "prediction": _packed(_small(found), seen["affine"])}
        if truth is not None:
            entry["truth"] = _packed(_small(truth), seen["affine"])
            entry["difference"] = _packed(difference(truth, found), seen["affine"])
        tasks.append(entry)
    image = _packed(*_grey(seen["image"][0], seen["affine"]))
    return {"image": image, "tasks": tasks, "differences": [list(pair) for pair in DIFFERENCES], "told": told}


def difference(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """(D, H, W) of both -> uint8: 0 equal, 1 a structure called background, 2 background called a structure, 3 another class.

    >>> difference(np.array([[[0, 1, 0, 1]]]), np.array([[[0, 0, 1, 2]]])).ravel().tolist()
    [0, 1, 2, 3]
    """
    kinds = np.select([prediction == 0, truth == 0], [1, 2], 3)
    return np.where(truth == prediction, 0, kinds).astype(np.uint8)


def fit(sample: Sample, max_voxels: int) -> tuple[Sample, str]:
    """The sample in at most `max_voxels` voxels, and in words what was done to it; "" for nothing."""
    shape = sample["image"].shape[1:]
    if np.prod(shape) <= max_voxels:
        return sample, ""
    told = []
    box = _box(sample)
    if any(side.stop - side.start < n for side, n in zip(box, shape)):
        sample = crop(sample, box)
        told.append("cropped")
    shape = sample["image"].shape[1:]
    if np.prod(shape) > max_voxels:
        spacing_mm = sample["spacing_mm"]
        low, high = float(spacing_mm.min()), float(spacing_mm.max()) * (np.prod(shape) / max_voxels)
        for _ in range(40):  # the smallest edge that fits: fine axes become coarser before coarse ones do
            edge = (low * high) ** 0.5
            fits = np.prod([max(1, round(n * mm / max(mm, edge))) for n, mm in zip(shape, spacing_mm)]) <= max_voxels
            low, high = (low, edge) if fits else (edge, high)
        sample = to_grid(sample, [max(float(mm), high) for mm in spacing_mm])
        told.append(f"resampled to {' x '.join(f'{mm:.2f}' for mm in sample['spacing_mm'])} mm")
    return sample, " and ".join(told)


def _box(sample: Sample) -> Box:
    """Around all structures, with a margin; around the body where there are none."""
    maps = [labels[None] for labels in sample["targets"].values() if isinstance(labels, np.ndarray) and labels.any()]
    shown = np.concatenate(maps).astype(np.float32) if maps else sample["image"]
    return foreground_box(shown, sample["spacing_mm"], MARGIN_MM)


def _small(labels: np.ndarray) -> np.ndarray:
    return labels.astype(np.uint8 if labels.max(initial=0) < 256 else np.int16)


def _grey(image: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, float]:
    """256 levels, and what turns them back into values."""
    low, high = (float(end) for end in np.percentile(image, (0.1, 99.9)))
    slope = (high - low) / 255 or 1.0
    return np.clip(np.round((image - low) / slope), 0, 255).astype(np.uint8), affine, slope, low


def _packed(voxels: np.ndarray, affine: np.ndarray, slope: float = 1.0, intercept: float = 0.0) -> str:
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(slope, intercept)
    return base64.b64encode(gzip.compress(image.to_bytes(), mtime=0)).decode()
