"""The convolutional block that stem and decoder are made of, and the stem.

Axes: B batch, C channel, D H W voxels; c is the stem's width.
"""

import torch
from torch import nn

from mri_ds.nn.normalization import GroupNormSiLU
from mri_ds.nn.slabs import Map, SlabConv3d


class ConvBlock(nn.Module):
    """3x3x3 convolution, group normalisation, SiLU: (B, in, D, H, W) -> (B, out, D', H', W'), D' = ceil(D / stride).

    Group rather than instance or batch normalisation: independent of the batch, and half the time of instance
    normalisation on CPU.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = SlabConv3d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm = GroupNormSiLU(max(1, out_channels // 8), out_channels)

    def forward(self, x: Map) -> torch.Tensor:
        return self.norm(self.conv(x), may_overwrite=True)  # type: ignore[no-any-return]


class Stem(nn.Module):
    """Input features -> skips at full and at half resolution.

    (B, F, D, H, W) -> (B, c, D, H, W) and (B, 4c, D/2, H/2, W/2); D, H, W even.
    """

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.at_full = ConvBlock(in_channels, width)
        self.at_half = nn.Sequential(ConvBlock(width, 4 * width, stride=2), ConvBlock(4 * width, 4 * width))

    def forward(self, features: Map) -> tuple[torch.Tensor, torch.Tensor]:
        # channels last: 3 x faster than contiguous for so few channels (8 -> 8 at 2 x 64^3, bf16, forward and backward, one core)
        if isinstance(features, torch.Tensor):
            features = features.contiguous(memory_format=torch.channels_last_3d)
        full = self.at_full(features)
        return full, self.at_half(full)
