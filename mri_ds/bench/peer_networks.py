"""MONAI's networks behind the same door as ours: (B, C, D, H, W), (B, 3) mm -> {segmentation task: (B, K, D, H, W) logits}.

Axes: B batch, C channels, K classes of all tasks together, D H W voxels.
Each is as MONAI builds it by default. Two things are done for them that ours has too: images are padded to the multiple that they
need, and the last bias starts at the classes' priors, without which rare classes are found epochs later.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from mri_ds.config import TaskConfig
from mri_ds.mri_network import pad_to_multiple

PRIOR_FLOOR = 1e-4


@dataclass(frozen=True)
class Peer:
    """How one is built, which edge lengths it takes, where its last bias is, and the learning rate that it is usually given."""

    build: Callable[[int, int], nn.Module]  # (input channels, outputs)
    multiple: int
    last_bias: str
    lr: float


def _basic_unet(in_channels: int, outputs: int) -> nn.Module:
    from monai.networks.nets import BasicUNet

    net: nn.Module = BasicUNet(spatial_dims=3, in_channels=in_channels, out_channels=outputs)
    return net


def _swin_unetr(in_channels: int, outputs: int) -> nn.Module:
    from monai.networks.nets import SwinUNETR

    net: nn.Module = SwinUNETR(in_channels=in_channels, out_channels=outputs, feature_size=24)
    return net


PEERS = {
    "BasicUNet": Peer(_basic_unet, multiple=16, last_bias="final_conv.bias", lr=2e-3),
    "SwinUNETR": Peer(_swin_unetr, multiple=32, last_bias="out.conv.conv.bias", lr=8e-4),
}


class PeerNet(nn.Module):
    """One network for all segmentation tasks, its outputs shared out among them in order."""

    def __init__(self, peer: Peer, tasks: Mapping[str, TaskConfig], in_channels: int) -> None:
        super().__init__()
        self.sizes = {name: task.num_outputs for name, task in tasks.items()}
        self.multiple = (peer.multiple,) * 3
        self.net = peer.build(in_channels, sum(self.sizes.values()))
        priors = [prior for task in tasks.values() for prior in task.class_prior or [1 / task.num_outputs] * task.num_outputs]
        with torch.no_grad():
            self.net.get_parameter(peer.last_bias).copy_(torch.tensor(priors).clamp_min(PRIOR_FLOOR).log())

    def forward(self, image: torch.Tensor, spacing_mm: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """spacing_mm is not looked at."""
        d, h, w = image.shape[2:]
        least = [max(0, 2 * m - n) for n, m in zip((d, h, w), self.multiple)]  # one voxel at the bottom cannot be normalised
        padded = F.pad(image, [p for missing in reversed(least) for p in (0, missing)], mode="replicate")
        logits = self.net(pad_to_multiple(padded, self.multiple))[:, :, :d, :h, :w].float()
        return dict(zip(self.sizes, logits.split(list(self.sizes.values()), dim=1)))
