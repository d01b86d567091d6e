"""Decoder: tokens climb back to full resolution, meeting the finer cubes and the stem's skips on the way.

Axes: B batch, c stem width, D token width, (d, h, w) token grid, s token stride.
In: tokens (B, d*h*w, D), the embedding's finer map (B, D/4, 2d, 2h, 2w), half (B, 4c, D/2, H/2, W/2) and full (B, c, D, H, W)
skips.  Out: features (B, c, D, H, W) and (B, 4c, D/2, H/2, W/2).
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from mri_ds.nn.attention import SparseAttention
from mri_ds.nn.convolution import ConvBlock
from mri_ds.nn.slabs import Planes, SlabConv3d, is_large, upsampled
from mri_ds.nn.transformer import EncoderBlock, FeedForward

Grid = tuple[int, int, int]
HEAD_DIM = 16


class Decoder(nn.Module):
    """Three joints: tokens + finer map at stride s/2, then the half-, then the full-resolution skip.

    num_layers transformer blocks stand behind the first joint, on the finest grid that tokens can afford: attention in windows
    of `window` cells, every second time shifted, and a dense network.
    """

    def __init__(self, dim: int, stem_channels: int, *, num_layers: int = 0, window: Grid = (4, 4, 4)) -> None:
        super().__init__()
        half = 4 * stem_channels
        self.from_tokens = nn.Conv3d(dim, half, 1)
        self.at_fine = UpBlock(half, dim // 4, half)
        heads = max(1, half // HEAD_DIM)
        self.blocks = nn.ModuleList(
            EncoderBlock(
                attention=SparseAttention(half, heads, window=window, shift=bool(i % 2)),
                feed_forward=FeedForward(half, 2 * half),
                dim=half,
            )
            for i in range(num_layers)
        )
        self.at_half = UpBlock(half, half, half)
        self.to_full = SlabConv3d(half, stem_channels, 1)
        self.at_full = UpBlock(stem_channels, None, stem_channels)

    def forward(
        self, tokens: torch.Tensor, grid: Grid, fine: torch.Tensor, half: torch.Tensor, full: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x = _as_map(tokens, grid)
        x = self.at_fine(self.from_tokens(x), fine)
        cells = (x.shape[2], x.shape[3], x.shape[4])
        for block in self.blocks:
            x = _as_map(block(rearrange(x, "b c d h w -> b (d h w) c"), cells), cells)
        at_half = self.at_half(x, half)
        return self.at_full(self.to_full(at_half), full), at_half


def _as_map(tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
    return rearrange(tokens, "b (d h w) c -> b c d h w", d=grid[0], h=grid[1], w=grid[2])


class UpBlock(nn.Module):
    """Upsample to the skip's grid, add the skip, convolve.

    `skip_channels` None: the skip has the right width already and is added as it is; at full resolution a 1x1x1 convolution
    costs more than the 3x3x3 one that follows.
    """

    def __init__(self, in_channels: int, skip_channels: int | None, out_channels: int) -> None:
        super().__init__()
        self.skip = SlabConv3d(skip_channels, in_channels, 1) if skip_channels is not None else nn.Identity()
        self.block = ConvBlock(in_channels, out_channels)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        size, coarse = skip.shape[2:], x
        if is_large((*x.shape[:2], *size)):
            skip = self.skip(skip)
            return self.block(Planes(skip.shape, lambda a, b: upsampled(coarse, size, a, b) + skip[:, :, a:b]))  # type: ignore[no-any-return]
        if x.shape[2:] != size:
            x = F.interpolate(x, size=size, mode="trilinear", align_corners=False)
        return self.block(x + self.skip(skip))  # type: ignore[no-any-return]
