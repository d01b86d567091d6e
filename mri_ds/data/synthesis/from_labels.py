"""Images of random contrast and resolution from a label map: any anatomy becomes training data for any scanner.

Axes: C channel, T tissue, D H W voxels of the label map, P Q R voxels of the result; mm towards right, anterior, superior.
In: a LabelMap, then the dice of `sample_params`.  Out of `apply`: image (C, P, Q, R) float32, labels (P, Q, R) int16.
In this order: affine and elastic motion of the labels (read once, nearest), one Gaussian per tissue, shading, gamma, slice
profile, thick slices or coarse voxels, ghosts and ringing, Rician noise, back onto the grid. Labels are those of the moved
anatomy: what the scan blurs stays sharply labelled. Same params, same bytes, on any number of threads.
Source: Billot et al. 2023 (SynthSeg), section 3; Gudbjartsson and Patz 1995 for the noise.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mri_ds.config import SynthesisConfig, Triple
from mri_ds.data.synthesis.acquisition import PROFILE_STD, Scan, from_scan, to_scan
from mri_ds.data.synthesis.label_map import LabelMap
from mri_ds.data.synthesis.motion import View, draw_affine, draw_control_points, look_up, smooth_field

MEANS, STDS = (25.0, 225.0), (5.0, 25.0)  # of a tissue's Gaussian
DARK_BACKGROUND = (10.0, 5.0)  # largest mean and standard deviation of air
DARK_PROB = 0.8  # else the background is drawn like any tissue
BIAS_CELLS = 2  # of the shading's spline, per axis
THICK_SLICES_PROB = 0.5  # one axis is coarse; else all three alike
PROFILE_SPREAD = 0.05  # relative: no scanner's profile is exactly Gaussian
GHOSTS, RINGING = ((2, 4), (0.05, 0.3)), (0.5, 0.9)  # copies and strength; share of k-space kept

Mm = tuple[float, float, float]


@dataclass(frozen=True)
class SynthesisParams:
    """The dice of one image; arrays are float64."""

    view: View
    means: np.ndarray  # (C, T)
    stds: np.ndarray  # (C, T)
    log_gain: np.ndarray | None  # (C, k, k, k)
    gamma: np.ndarray | None  # (C,)
    scans: tuple[Scan, ...]  # C
    noise_std: np.ndarray  # (C,)
    seed: int  # of texture and noise


def sample_params(
    rng: np.random.Generator,
    label_map: LabelMap,
    *,
    shape: Triple,
    spacing_mm: Mm,
    num_channels: int,
    centre_mm: np.ndarray,
    strengths: SynthesisConfig,
    may_flip: bool = False,
) -> SynthesisParams:
    """Draws one image of `shape` voxels of `spacing_mm` about `centre_mm` of the map. A strength of 0 leaves its step out."""
    matrix = draw_affine(rng, rotate_deg=strengths.rotate_deg, scale=strengths.scale, shear=strengths.shear)
    if rng.random() < 0.5 and may_flip:
        matrix[:, 0] *= -1
    control_mm = None
    if strengths.elastic_mm:
        control_mm = draw_control_points(rng, shape, spacing_mm, most_mm=strengths.elastic_mm, grid_mm=strengths.elastic_grid_mm)
    means, stds = _draw_tissues(rng, num_channels, label_map.num_tissues)
    bias, knots = strengths.bias * rng.random(), (num_channels, *[BIAS_CELLS + 3] * 3)
    return SynthesisParams(
        view=View(shape, spacing_mm, centre_mm, matrix, control_mm),
        means=means,
        stds=stds,
        log_gain=rng.normal(0, bias, size=knots) if strengths.bias else None,
        gamma=np.exp(rng.normal(0, strengths.gamma, size=num_channels)) if strengths.gamma else None,
        scans=tuple(_draw_scan(rng, label_map, shape, spacing_mm, strengths) for _ in range(num_channels)),
        noise_std=strengths.noise * MEANS[1] * rng.random(num_channels),
        seed=int(rng.integers(2**63)),
    )


def apply(label_map: LabelMap, params: SynthesisParams) -> tuple[Tensor, Tensor]:
    """The image that `params` makes of a label map, (C, P, Q, R) float32 >= 0 in no unit, and its labels (P, Q, R) int16."""
    with _one_thread():
        return _apply(label_map, params)


def _apply(label_map: LabelMap, params: SynthesisParams) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(params.seed)
    view = params.view
    rows = look_up(label_map, view, view.shape)
    fine_shape = sharp_shape(label_map, view.shape, view.spacing_mm)
    fine = rows if fine_shape == view.shape else look_up(label_map, view, fine_shape)
    image = torch.stack([_channel(label_map, params, fine, c, generator) for c in range(len(params.means))])
    return image, torch.from_numpy(label_map.class_of)[rows.int()]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Matrix products round differently on another number of threads; the same seed must give the same bytes everywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def sharp_shape(label_map: LabelMap, shape: Triple, spacing_mm: Mm) -> Triple:
    """Voxels of the grid on which tissue is drawn: the result's, or twice as fine along an axis much coarser than the map."""
    p, q, r = (n * (2 if s >= 1.5 * own else 1) for n, s, own in zip(shape, spacing_mm, label_map.spacing_mm))
    return p, q, r


def _channel(label_map: LabelMap, params: SynthesisParams, rows: Tensor, c: int, generator: torch.Generator) -> Tensor:
    """One channel from the rows (D, H, W) of the sharp grid to (P, Q, R) float32."""
    image = paint(rows, params.means[c][label_map.tissue_of], params.stds[c][label_map.tissue_of], generator)
    if params.log_gain is not None:
        image.mul_(smooth_field(params.log_gain[c : c + 1], rows.shape)[0].exp_())
    if params.gamma is not None:
        image = _bend(image.clamp_(min=0), float(params.gamma[c]))
    image = to_scan(image, params.scans[c])
    if params.noise_std[c]:
        image = _rician(image, float(params.noise_std[c]), generator)
    return from_scan(image, params.view.shape).clamp_(min=0)


def paint(rows: Tensor, means: np.ndarray, stds: np.ndarray, generator: torch.Generator) -> Tensor:
    """Every voxel its own draw from the Gaussian of its row: rows (D, H, W), means and stds (n,) -> (D, H, W) float32."""
    flat = rows.flatten().int()
    texture = torch.randn(flat.shape, generator=generator)
    texture.mul_(torch.from_numpy(stds).float().index_select(0, flat))
    return texture.add_(torch.from_numpy(means).float().index_select(0, flat)).view(rows.shape)


def _bend(image: Tensor, gamma: float) -> Tensor:
    """Contrast curve over the image's own range, which stays what it was."""
    low, high = image.min(), image.max()
    span = (high - low).clamp_min(1e-6)
    return image.sub_(low).div_(span).pow_(gamma).mul_(span).add_(low)


def _rician(image: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Magnitude of a complex signal with Gaussian noise of `std` in both parts."""
    real, imaginary = (torch.randn(image.shape, generator=generator).mul_(std) for _ in range(2))
    return torch.hypot(image + real, imaginary)


# ---- dice ----------------------------------------------------------------------------------------------------------


def _draw_tissues(rng: np.random.Generator, num_channels: int, num_tissues: int) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations (C, T); tissue 0 is the background, most often dark as air is."""
    means = rng.uniform(*MEANS, size=(num_channels, num_tissues))
    stds = rng.uniform(*STDS, size=(num_channels, num_tissues))
    dark = rng.uniform(0, DARK_BACKGROUND, size=(num_channels, 2))
    if rng.random() < DARK_PROB:
        means[:, 0], stds[:, 0] = dark.T
    return means, stds


def _draw_scan(rng: np.random.Generator, label_map: LabelMap, shape: Triple, spacing_mm: Mm, strengths: SynthesisConfig) -> Scan:
    """Thick slices along one axis or coarse voxels along all, a profile as wide as a slice, at times ghosts and ringing."""
    is_thick, axis = rng.random() < THICK_SLICES_PROB, int(rng.integers(3))
    most = strengths.max_slice_mm if is_thick else strengths.max_voxel_mm
    own = np.array(spacing_mm)
    coarse = np.maximum(own, rng.uniform(min(own.min(), most), most))
    scan_mm = np.where(np.arange(3) == axis, coarse, own) if is_thick else coarse
    thickness_mm = rng.uniform(own, scan_mm)  # slices may lie apart, and never overlap
    spread = rng.uniform(1 - PROFILE_SPREAD, 1 + PROFILE_SPREAD)
    sharp_mm = own * shape / sharp_shape(label_map, shape, spacing_mm)
    is_coarse = (thickness_mm > own) | (sharp_mm < own)
    std = np.where(is_coarse, spread * PROFILE_STD * thickness_mm / sharp_mm, 0.0)
    ghosts, ringing = rng.random(2) < strengths.artefact_prob
    ghost = (int(rng.integers(3)), float(rng.uniform(*GHOSTS[1])), int(rng.integers(GHOSTS[0][0], GHOSTS[0][1] + 1)))
    ring = (int(rng.integers(3)), float(rng.uniform(*RINGING)))
    d, h, w = (max(2, math.floor(n * s / coarser + 0.5)) for n, s, coarser in zip(shape, spacing_mm, scan_mm))
    a, b, c = std.tolist()
    return Scan((d, h, w), (a, b, c), ringing=ring if ringing else None, ghosts=ghost if ghosts else None)
