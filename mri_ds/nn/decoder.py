"""Decoder: tokens climb back to full resolution, meeting the finer cubes and the stem's skips on the way.

Axes: B batch, c stem width, D token width, (d, h, w) token grid, s token stride.
In: tokens (B, d*h*w, D), the embedding's finer map (B, D/4, 2d, 2h, 2w), half (B, 4c, D/2, H/2, W/2) and full (B, c, D, H, W)
skips.  Out: features (B, c, D, H, W) and (B, 4c, D/2, H/2, W/2).
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from mri_ds.nn.convolution import ConvBlock

Grid = tuple[int, int, int]


class Decoder(nn.Module):
    """Three joints: tokens + finer map at stride s/2, then the half-, then the full-resolution skip."""

    def __init__(self, dim: int, stem_channels: int) -> None:
        super().__init__()
        half = 4 * stem_channels
        self.from_tokens = nn.Conv3d(dim, half, 1)
        self.at_fine = UpBlock(half, dim // 4, half)
        self.at_half = UpBlock(half, half, half)
        self.to_full = nn.Conv3d(half, stem_channels, 1)
        self.at_full = UpBlock(stem_channels, None, stem_channels)

    def forward(
        self, tokens: torch.Tensor, grid: Grid, fine: torch.Tensor, half: torch.Tensor, full: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x = rearrange(tokens, "b (d h w) c -> b c d h w", d=grid[0], h=grid[1], w=grid[2])
        x = self.at_fine(self.from_tokens(x), fine)
        at_half = self.at_half(x, half)
        return self.at_full(self.to_full(at_half), full), at_half


class UpBlock(nn.Module):
    """Upsample to the skip's grid, add the skip, convolve.

    `skip_channels` None: the skip has the right width already and is added as it is; at full resolution a 1x1x1 convolution
    costs more than the 3x3x3 one that follows.
    """

    def __init__(self, in_channels: int, skip_channels: int | None, out_channels: int) -> None:
        super().__init__()
        self.skip = nn.Conv3d(skip_channels, in_channels, 1) if skip_channels is not None else nn.Identity()
        self.block = ConvBlock(in_channels, out_channels)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        if x.shape[2:] != skip.shape[2:]:
            x = F.interpolate(x, size=skip.shape[2:], mode="trilinear", align_corners=False)
        return self.block(x + self.skip(skip))  # type: ignore[no-any-return]
