"""Where voxels come from: crop, affine map, elastic field and grid distortion of an image and its labels in one resampling.

Axes: C channel, K label maps, D H W voxels of the source, P Q R voxels of the window that is cut out.
In: image (C, D, H, W), labels (K, D, H, W), a window and its deformation in mm.  Out: (C, P, Q, R), (K, P, Q, R).
A window voxel at offset p (mm) from the window's centre shows the source at M g(p) + t + u(p) from it: M and the shift t in mm,
so that anisotropic voxels are rotated and not sheared, u a cubic B-spline over few control points, g stretching cells per axis.
Images are read linearly, labels take the nearest voxel; beyond the source an image continues with `fill` and a label with 0,
background. Without a deformation the window is a copy. Whole numbers are voxel centres throughout.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mri_ds.augment.frame import Arrays, Triple
from mri_ds.augment.spline import smooth_field


@dataclass(frozen=True)
class Deformation:
    """Motion of a window about its centre; None is none."""

    matrix: np.ndarray | None = None  # (3, 3), mm to mm
    shift_mm: np.ndarray | None = None  # (3,)
    control_mm: np.ndarray | None = None  # (3, k, k, k), displacements of the control points
    cells: np.ndarray | None = None  # (3, n + 1), borders of n cells per axis as shares of the window's length

    @property
    def is_none(self) -> bool:
        return all(part is None for part in (self.matrix, self.shift_mm, self.control_mm, self.cells))


@dataclass(frozen=True)
class Window:
    """What a result is read from: a box of the source, and of each voxel of the result its place in that box."""

    box: tuple[slice, slice, slice]  # of the source; no voxel outside it is touched
    shape: Triple  # P Q R
    start: Triple  # where in the box the result's first voxel lies, if nothing is deformed
    where: Tensor | None = None  # (3, P, Q, R) float32 positions in the box; None: a copy


def source_window(
    source_shape: Sequence[int],
    *,
    start: Sequence[int],
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    deformation: Deformation,
    device: torch.device | str = "cpu",
) -> Window:
    """The window of `shape` whose first voxel is source voxel `start` (which may lie outside), deformed about its centre.

    Needs the size of the source and none of its voxels: a reader can fetch Window.box alone.
    """
    p, q, r = (int(n) for n in shape)
    if deformation.is_none:
        sides = [_overlap(first, n, size) for first, n, size in zip(start, shape, source_shape)]
        where = None
    else:
        where = source_positions(start=start, shape=shape, spacing_mm=spacing_mm, deformation=deformation, device=device)
        sides = [_reach(positions, size) for positions, size in zip(where, source_shape)]
        for positions, (lo, _) in zip(where, sides):
            positions -= lo
    d, h, w = (slice(lo, hi) for lo, hi in sides)
    first, second, third = (int(s) - side.start for s, side in zip(start, (d, h, w)))
    return Window((d, h, w), (p, q, r), (first, second, third), where)


def read_window(image: Tensor, labels: Tensor, window: Window, *, fill: float = 0.0) -> tuple[Tensor, Tensor]:
    """Image (C, *box) and labels (K, *box) of a window's box -> (C, P, Q, R), (K, P, Q, R)."""
    if window.where is None:
        return crop(image, window.start, window.shape, fill), crop(labels, window.start, window.shape, 0)
    return read_linear(image, window.where, fill), read_nearest(labels, window.where)


def resample(image: Tensor, labels: Tensor, *, fill: float = 0.0, **where: Any) -> tuple[Tensor, Tensor]:
    """`read_window` of a source that is all there; `where` as for `source_window`."""
    window = source_window(image.shape[1:], device=image.device, **where)
    box = (slice(None), *window.box)
    return read_window(image[box], labels[box], window, fill=fill)


def crop(voxels: Tensor, start: Sequence[int], shape: Sequence[int], fill: float) -> Tensor:
    """(C, D, H, W) -> (C, *shape) from voxel `start` on, with `fill` where the window leaves the source.

    >>> crop(torch.arange(3.0).view(1, 3, 1, 1), (-1, 0, 0), (5, 1, 1), fill=9).flatten().tolist()
    [9.0, 0.0, 1.0, 2.0, 9.0]
    """
    window = voxels.new_full((voxels.shape[0], *shape), fill)
    here, there = [slice(None)], [slice(None)]
    for size, first, length in zip(voxels.shape[1:], start, shape):
        lo, hi = max(first, 0), max(min(first + length, size), max(first, 0))
        there.append(slice(lo, hi))
        here.append(slice(lo - first, hi - first))
    window[tuple(here)] = voxels[tuple(there)]
    return window


def permute(voxels: Tensor, *, quarter_turns: Arrays, flips: Arrays) -> Tensor:
    """(C, P, Q, R) with its voxels in another order, none of them changed: turned in a plane, then flipped."""
    for i, j, k in quarter_turns:
        voxels = voxels.rot90(int(k), (int(i) + 1, int(j) + 1))
    for axes in flips:
        voxels = voxels.flip([int(axis) + 1 for axis in axes])
    return voxels


def source_positions(
    *,
    start: Sequence[int],
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    deformation: Deformation,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Source voxel coordinates (3, P, Q, R) float32 that each window voxel shows; whole numbers are voxel centres."""
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    centre = np.asarray(start) + (np.asarray(shape) - 1) / 2
    if deformation.shift_mm is not None:
        centre = centre + deformation.shift_mm / spacing
    per_voxel = (np.eye(3) if deformation.matrix is None else deformation.matrix) * spacing / spacing[:, None]
    p, q, r = (_offsets(n, None if deformation.cells is None else deformation.cells[i]) for i, n in enumerate(shape))
    if deformation.control_mm is None:
        where = torch.zeros((3, *shape), device=device)
    else:
        where = smooth_field(deformation.control_mm / spacing[:, None, None, None], shape, device)
    for i, (a, b, c) in enumerate(per_voxel.tolist()):
        plane = centre[i] + a * p[:, None, None] + b * q[:, None]  # float64 while it is small
        where[i] += plane.float().to(device)
        where[i] += (c * r).float().to(device)
    return where


def read_linear(image: Tensor, where: Tensor, fill: float) -> Tensor:
    """Image (C, D, H, W) at positions (3, P, Q, R), trilinear, running into `fill` beyond its border; (C, P, Q, R)."""
    grid = where.new_empty((*where.shape[1:], 3))
    for axis, (positions, size) in enumerate(zip(where, image.shape[1:])):  # grid_sample: -1..1 of W, H, D between outer edges
        torch.mul(positions, 2 / size, out=grid[..., 2 - axis])
        grid[..., 2 - axis] += 1 / size - 1
    if fill:
        image = image - fill
    pixels = F.grid_sample(image[None], grid[None], mode="bilinear", padding_mode="zeros", align_corners=False)[0]
    return pixels.add_(fill) if fill else pixels


def read_nearest(labels: Tensor, where: Tensor) -> Tensor:
    """Label maps (K, D, H, W) at positions (3, P, Q, R), the nearest voxel, 0 beyond the border; (K, P, Q, R) of their type.

    Values are looked up, never computed with: any integer of any size comes out as it went in.
    """
    framed = F.pad(labels, (1, 1) * 3)  # a border of background, on which everything outside ends up
    index = None
    for positions, size in zip(where, framed.shape[1:]):
        nearest = (positions + 1).round_().clamp_(0, size - 1).long()
        index = nearest if index is None else index.mul_(size).add_(nearest)
    assert index is not None
    return torch.stack([label.flatten()[index] for label in framed]) if len(labels) else labels.new_zeros((0, *where.shape[1:]))


def _offsets(length: int, cells: np.ndarray | None) -> Tensor:
    """Voxel offsets of `length` window voxels from the window's centre, (length,) float64, after stretching its cells."""
    place = np.arange(length) - (length - 1) / 2
    if cells is not None:  # cells divide the window from the outer edge of its first voxel to that of its last
        place = (np.interp(place / length + 0.5, np.linspace(0, 1, len(cells)), cells) - 0.5) * length
    return torch.from_numpy(place)


def _overlap(first: int, length: int, size: int) -> tuple[int, int]:
    """First and last + 1 source voxel of one axis among `length` from `first` on; none of them may be inside."""
    lo = min(max(first, 0), size)
    return lo, max(min(first + length, size), lo)


def _reach(positions: Tensor, size: int) -> tuple[int, int]:
    """First and last + 1 source voxel of one axis that any position can touch: a small window of a large volume reads little.

    On an accelerator the whole source is there already, and asking for the bounds would make the host wait for the device.
    """
    if positions.device.type != "cpu":
        return 0, size
    least, most = positions.aminmax()
    lo = min(max(int(least.floor()) - 1, 0), size - 1)
    return lo, max(min(int(most.ceil()) + 2, size), lo + 1)
