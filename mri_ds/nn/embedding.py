"""Optimised cube embedding: three scales of overlapping 3-D cubes, fused onto one token grid.

Axes: B batch, c stem width, D token width, N = d * h * w tokens; s is the token stride in voxels, a cube is 2s voxels long.
In: half-resolution features (B, 4c, D/2, H/2, W/2), sides divisible by s/2.  Out: tokens (B, N, D), their grid (d, h, w), and
the finer map (B, D/4, 2d, 2h, 2w) as a skip for the decoder.
Scales: cubes of 2s, s and 4s voxels with strides s, s/2 and 2s. The double cube is read at half sampling (averaged by two), so
that every scale spends the same weights on its cube and cost stays even.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from mri_ds.nn.slabs import Map, Planes, SlabConv3d, is_large

Grid = tuple[int, int, int]


class OptimizedCubeEmbedding(nn.Module):
    """Half-resolution features -> (tokens, grid, finer map).

    every_token: double cubes stand a stride apart, not two, so that moving an image by one stride moves all of its tokens by one
    (else two are needed); their weights are the same in number, their products eight times as many.
    Learned positions live on a small grid and are interpolated to the token grid, so any volume size fits.
    """

    def __init__(
        self,
        in_channels: int,
        dim: int,
        *,
        stride: Grid,
        multi_scale: bool = True,
        position_grid: int = 6,
        every_token: bool = False,
    ) -> None:
        super().__init__()
        if any(s < 4 or s % 4 for s in stride):
            raise ValueError(f"token stride {stride}: every side must be a multiple of 4 voxels")
        self.half_stride = half = (stride[0] // 2, stride[1] // 2, stride[2] // 2)  # the stride in half-resolution voxels
        self.cube = CubeConv(in_channels, dim, stride=half)
        self.fine = CubeConv(in_channels, dim // 4, stride=(half[0] // 2, half[1] // 2, half[2] // 2))
        self.fine_to_token = nn.Conv3d(dim // 4, dim, 2, stride=2)
        self.every_token = every_token
        apart = (half[0] // 2, half[1] // 2, half[2] // 2) if every_token else half  # double cubes, in voxels sampled by half
        self.coarse = CubeConv(in_channels, dim, stride=apart, length=self.cube.length) if multi_scale else None
        self.positions = nn.Parameter(torch.randn(1, dim, *[position_grid] * 3) * 0.02)
        self.norm = nn.LayerNorm(dim)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, Grid, torch.Tensor]:
        fine = self.fine(features)
        tokens = self.cube(features)
        tokens = tokens + self.fine_to_token(fine)
        if self.coarse is not None:
            tokens = tokens + self._coarse_at(features, tokens.shape[2:])
        grid = (tokens.shape[2], tokens.shape[3], tokens.shape[4])
        tokens = tokens + F.interpolate(self.positions.float(), size=grid, mode="trilinear", align_corners=False).to(tokens)
        return self.norm(rearrange(tokens, "b c d h w -> b (d h w) c")), grid, fine

    def _coarse_at(self, features: torch.Tensor, grid: torch.Size) -> torch.Tensor:
        """The double cubes' map on the token grid; an odd grid is read one stride further, over repeated edges."""
        missing = [0 if self.every_token else (n % 2) * s for n, s in zip(grid, self.half_stride, strict=True)]
        if is_large(features.shape):
            size = [(n + m) // 2 for n, m in zip(features.shape[2:], missing, strict=True)]
            halved: Map = Planes([*features.shape[:2], *size], lambda a, b: _halve(_planes(features, 2 * a, 2 * b), missing[1:]))
        else:
            halved = _halve(features, missing)
        coarse = self.coarse(halved)  # type: ignore[misc]
        if self.every_token:
            return coarse  # type: ignore[no-any-return]
        coarse = F.interpolate(coarse, scale_factor=2, mode="nearest")
        return coarse[:, :, : grid[0], : grid[1], : grid[2]]


def _halve(features: torch.Tensor, missing: Sequence[int]) -> torch.Tensor:
    """Means over 2 x 2 x 2, after the edges of the last axes have been repeated `missing` times."""
    if any(missing):
        pad = [p for m in reversed(missing) for p in (0, m)]
        features = F.pad(features, pad + [0] * (6 - len(pad)), mode="replicate")
    # at exactly half the size the linear weights are those of a mean; avg_pool3d has no bf16 on CPU
    return F.interpolate(features, scale_factor=0.5, mode="trilinear", align_corners=False)


def _planes(features: torch.Tensor, a: int, b: int) -> torch.Tensor:
    """Planes a to b - 1; the last one is repeated behind the map."""
    index = torch.arange(a, b, device=features.device).clamp(max=features.shape[2] - 1)
    return features[:, :, a:b] if b <= features.shape[2] else features.index_select(2, index)


class CubeConv(nn.Module):
    """Overlapping cubes of `length` (2 * stride) as one convolution, padded so that N voxels give N / stride cubes."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: Grid, length: Grid | None = None) -> None:
        super().__init__()
        self.length = length or (2 * stride[0], 2 * stride[1], 2 * stride[2])
        self.conv = SlabConv3d(in_channels, out_channels, self.length, stride=stride)
        # F.pad takes the last axis first; half of what is over before and the rest behind centre each cube on its stride
        over = [n - s for n, s in zip(self.length, stride)]
        self.pad = [p for n in reversed(over) for p in (n // 2, n - n // 2)]

    def forward(self, x: Map) -> torch.Tensor:
        return self.conv(x, self.pad)  # type: ignore[no-any-return]
