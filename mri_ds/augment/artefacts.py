"""Artefacts of a scan that need the whole image: motion between k-space lines, and a spike in k-space.

Axes: C channel, S moves, D H W voxels.  In: a normalised image (C, D, H, W) and arrays drawn before.  Out: the same shape.
Source: Shaw et al. 2019 (motion as k-space lines of differently placed images); TorchIO's Motion and Spike, whose formulas these
are. Fourier transforms turn out not to be needed: k-space lines of one axis are picked by a matrix, a spike is a plane wave.
"""

import numpy as np
import torch
from torch import Tensor

from mri_ds.augment.deformation import rotation
from mri_ds.augment.frame import Arrays, Frame, per_channel
from mri_ds.augment.lines import along_lines, frequency_filter
from mri_ds.augment.spatial import Deformation, read_linear, source_positions

MOVES = (1, 3)  # fewest and most
STILL = 0.1  # share of k-space about its centre that is scanned before the patient moves: anatomy stays where its label is


def draw_motion(rng: np.random.Generator, frame: Frame, strength_mm: float) -> Arrays:
    """For each move its matrix (S, 3, 3), shift (S, 3), first and last k-space line as shares of the axis (S, 2); the axis and
    the spacing in mm, (4,). A move is up to strength_mm along and, in degrees, about each axis.

    The moves come after or before the centre of k-space is scanned, which therefore shows the patient in the place of the labels.
    """
    count = int(rng.integers(MOVES[0], MOVES[1] + 1))
    matrices = np.stack([rotation(rng.uniform(-strength_mm, strength_mm, size=3)) for _ in range(count)])
    shifts = rng.uniform(-strength_mm, strength_mm, size=(count, 3))
    times = np.sort(rng.uniform(0.5 + STILL / 2, 1, size=count))
    lines = np.stack([times, np.append(times[1:], 1.0)], axis=1)
    if rng.random() < 0.5:  # scanned from the other end
        lines = 1 - lines[:, ::-1]
    return matrices, shifts, lines, np.array([rng.integers(3), *frame.spacing_mm])


def apply_motion(image: Tensor, matrices: np.ndarray, shifts: np.ndarray, lines: np.ndarray, place: np.ndarray) -> Tensor:
    """Image + sum over moves of (the moved image - the image), in that move's k-space lines only."""
    axis, spacing_mm, shape = int(place[0]), place[1:].tolist(), image.shape[1:]
    result = image.clone()
    low = image.amin(dim=(1, 2, 3), keepdim=True)  # beyond the field of view
    above = image - low
    for matrix, shift_mm, (first, last) in zip(matrices, shifts, lines):
        n = shape[axis]
        planes = np.zeros(n)
        planes[round(first * n) : round(last * n)] = 1
        move = Deformation(matrix=matrix, shift_mm=shift_mm)
        where = source_positions(start=(0, 0, 0), shape=shape, spacing_mm=spacing_mm, deformation=move, device=image.device)
        difference = read_linear(above, where, fill=0).sub_(above)
        result += along_lines(difference, [frequency_filter(planes)[None] if a == axis else None for a in range(3)])
    return result


def draw_spike(rng: np.random.Generator, frame: Frame, strength: float) -> Arrays:
    """Amplitude per channel in 0..strength (standard deviations), (C,); the spike's place in cycles per voxel, -1/2..1/2, and its
    phase in cycles, (4,)."""
    cycles = [int(rng.integers(-(n // 2), n // 2 + 1)) / n for n in frame.shape]
    return rng.uniform(0, strength, size=frame.num_channels), np.array([*cycles, rng.random()])


def apply_spike(image: Tensor, amplitude: np.ndarray, wave: np.ndarray) -> Tensor:
    """Image + amplitude cos(2 pi (cycles . voxel + phase)): stripes across the whole image."""
    d, h, w = (2 * np.pi * ((np.arange(n) * cycles) % 1) for n, cycles in zip(image.shape[1:], wave))
    plane = torch.from_numpy(d[:, None] + h + 2 * np.pi * wave[3]).to(image)
    stripes = (plane[:, :, None] + torch.from_numpy(w).to(image)).cos_()
    return image + stripes * per_channel(amplitude, image)
