"""N4: takes the coil's slow change of brightness out of an image.

Axes: C channel, D H W voxels.
SimpleITK does the work and is needed only here (`pip install mri_ds[preprocess]`).
Source: Tustison et al. 2010, "N4ITK: improved N3 bias correction".
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mri_ds.data.preprocess.foreground import otsu_threshold
from mri_ds.data.preprocess.intensities import has_zero_background
from mri_ds.errors import InputError

FIT_MM = 4.0  # the field is fitted on a grid about as coarse as this: it changes over centimetres
SPLINE_MM = 25.0  # no finer than this may it bend, or it would take anatomy for bias
ITERATIONS, MAX_LEVELS = 50, 4  # per level; each has twice the spline patches of the last, the first has one


def correct_bias(image: np.ndarray, spacing_mm: Iterable[float]) -> np.ndarray:
    """(C, D, H, W) -> float32 of the same shape, each channel divided by its own smooth field; the same input, the same result.

    The field is fitted inside the foreground: voxels above Otsu's threshold, or over zero in a masked scan. Its geometric mean
    there is 1, so that intensities keep their scale. A channel without positive voxels is returned as it is.
    Seconds for a head of 1 mm on one core. Raises InputError where SimpleITK is not installed.
    """
    sitk, edges_mm = _simpleitk(), [float(mm) for mm in spacing_mm]
    return np.stack([_correct(sitk, channel, edges_mm) for channel in image])


def _correct(sitk: Any, channel: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    channel = channel.astype(np.float32, copy=False)
    mask = channel > (0.0 if has_zero_background(channel) else max(otsu_threshold(channel), 0.0))  # N4 takes logarithms
    if not mask.any():
        return channel.copy()
    steps = [max(1, min(round(FIT_MM / mm), n // 4)) for mm, n in zip(spacing_mm, channel.shape)]
    whole, body = _as_sitk(sitk, channel, spacing_mm), _as_sitk(sitk, mask.astype(np.uint8), spacing_mm)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations([ITERATIONS] * _num_levels(channel.shape, spacing_mm))
    n4.SetNumberOfThreads(1)  # sums in one order: the same result on every machine, and the loader's workers share the cores
    n4.Execute(sitk.Shrink(whole, steps[::-1]), sitk.Shrink(body, steps[::-1]))
    field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(whole)).reshape(channel.shape)
    field -= field[mask].mean(dtype=np.float64)
    return channel / np.exp(field, out=field)


def _num_levels(shape: Sequence[int], spacing_mm: Sequence[float]) -> int:
    longest_mm = max(n * mm for n, mm in zip(shape, spacing_mm))
    return min(MAX_LEVELS, 1 + max(0, math.floor(math.log2(longest_mm / SPLINE_MM))))


def _as_sitk(sitk: Any, voxels: np.ndarray, spacing_mm: Sequence[float]) -> Any:
    """SimpleITK counts axes from the last; direction does not matter to the fit."""
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing_mm[::-1])
    return image


def _simpleitk() -> Any:
    try:
        import SimpleITK
    except ImportError:
        raise InputError("data.bias_correction needs SimpleITK", fix="pip install 'mri_ds[preprocess]'") from None
    return SimpleITK
