"""Convolutions a slab at a time, so that a large map costs itself and little beside: 512^3 voxels on one machine.

Axes: B batch, C channels, D H W voxels; a slab is a run of planes along D.
Where no graph is recorded, a map of more than LARGE numbers is read and written in slabs of about SLAB numbers, each with the
planes around it that its kernel reaches: the result is that of the whole map, to rounding. What is only there to be convolved
(features, upsampled maps with their skips) is a `Planes`, made slab by slab and never held.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGE = 2**26  # numbers of a map, 128 MiB in bfloat16: patches that networks are trained on stay whole
SLAB = 2**24


@dataclass(frozen=True)
class Planes:
    """A map of `shape` (B, C, D, H, W) that is made when it is read: read(a, b) gives its planes a to b - 1."""

    shape: Sequence[int]
    read: Callable[[int, int], Tensor]


Map = Tensor | Planes


def is_large(shape: Sequence[int]) -> bool:
    """Whether a map is worked on in slabs."""
    return math.prod(shape) > LARGE and not torch.is_grad_enabled()


def slabs(depth: int, numbers_per_plane: int) -> Iterator[tuple[int, int]]:
    """(first plane, last + 1) of each slab.

    >>> list(slabs(10, SLAB // 4))
    [(0, 4), (4, 8), (8, 10)]
    """
    size = max(1, SLAB // numbers_per_plane)
    return ((a, min(a + size, depth)) for a in range(0, depth, size))


class SlabConv3d(nn.Conv3d):
    """nn.Conv3d over a map of any size; `pad` counts as in F.pad and comes on top of `padding`."""

    def forward(self, x: Map, pad: Sequence[int] = (0,) * 6) -> Tensor:
        padding = [int(n) for n in self.padding]
        return convolve(x, self.weight, self.bias, stride=self.stride, padding=padding, pad=pad)


def convolve(
    x: Map, weight: Tensor, bias: Tensor | None, *, stride: Sequence[int], padding: Sequence[int], pad: Sequence[int] = (0,) * 6
) -> Tensor:
    """F.conv3d of x (B, C, D, H, W) with zeros around: `padding` on both sides of D, H and W, then `pad` as F.pad counts."""
    of_w, of_h, of_d = pad[0:2], pad[2:4], pad[4:6]
    size = [
        (n + 2 * p + sum(more) - k) // s + 1
        for n, p, more, k, s in zip(x.shape[2:], padding, (of_d, of_h, of_w), weight.shape[2:], stride)
    ]
    shape = [x.shape[0], weight.shape[0], *size]
    if isinstance(x, Tensor) and not is_large(x.shape) and not is_large(shape):
        # tuples, because DeepSpeed's profiler adds them to others
        return F.conv3d(F.pad(x, pad) if any(pad) else x, weight, bias, tuple(stride), tuple(padding))
    read = x.read if isinstance(x, Planes) else lambda a, b: x[:, :, a:b]
    depth, out = x.shape[2], None
    numbers = max(math.prod(x.shape) // depth * stride[0], math.prod(shape) // size[0])
    for a, b in slabs(size[0], numbers):
        first = a * stride[0] - padding[0] - of_d[0]
        last = (b - 1) * stride[0] + weight.shape[2] - padding[0] - of_d[0]
        part = read(max(first, 0), min(last, depth))
        around = [*of_w, *of_h, max(-first, 0), max(last - depth, 0)]
        part = F.pad(part, around) if any(around) else part
        part = part.contiguous(memory_format=torch.channels_last_3d)
        done = F.conv3d(part, weight, bias, tuple(stride), (0, *padding[1:]))
        if out is None:
            out = done.new_empty(shape).to(memory_format=torch.channels_last_3d)
        out[:, :, a:b] = done
    assert out is not None
    return out


def upsampled(x: Tensor, shape: Sequence[int], a: int, b: int) -> Tensor:
    """Planes a to b - 1 of x (B, C, D, H, W), interpolated linearly to `shape` (D', H', W'), a multiple of its own."""
    depth = x.shape[2]
    assert shape[0] % depth == 0
    times = shape[0] // depth
    first, last = max(a // times - 1, 0), min(-(-b // times) + 1, depth)  # a plane more on each side for the weights to fall on
    size = (times * (last - first), shape[1], shape[2])
    wide = F.interpolate(x[:, :, first:last], size=size, mode="trilinear", align_corners=False)
    return wide[:, :, a - times * first : b - times * first]


def plus_upsampled(x: Tensor, coarse: Tensor) -> Tensor:
    """x (B, C, D', H', W') + coarse (B, C, D, H, W) brought to its grid; a large x is overwritten."""
    shape = x.shape[2:]
    if not is_large(x.shape):
        return x + F.interpolate(coarse, size=shape, mode="trilinear", align_corners=False)
    for a, b in slabs(shape[0], x.numel() // shape[0]):
        x[:, :, a:b] += upsampled(coarse, shape, a, b)
    return x
