"""Networks for segmentation that `bench network` sets ours beside, as their authors build them, and how ours are built.

Axes: B batch, C channel, D H W voxels, K classes.
In: image (B, 1, D, H, W).  Out: logits (B, K, D, H, W).
MONAI's with their defaults; nnU-Net's with what its planner gives a cube (Isensee et al. 2021; residual encoder "M", 2024): a
stage more for each time the sides can be halved without falling below 4, at most six, features doubling from 32 to 320.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from mri_ds.errors import InputError

FEATURES = (32, 64, 128, 256, 320, 320)
RESIDUAL_BLOCKS = (1, 3, 4, 6, 6, 6)
SMALLEST = 4  # voxels along the sides of the coarsest map
INSTALL = {
    "monai": "pip install monai",
    "dynamic_network_architectures": "pip install --no-deps dynamic-network-architectures",  # its timm brings torchvision
}


class MissingPackage(InputError):
    """A peer's package is not installed."""


def swin_unetr(patch: int, num_classes: int) -> nn.Module:
    from monai.networks.nets import SwinUNETR

    return SwinUNETR(in_channels=1, out_channels=num_classes, feature_size=24)  # type: ignore[no-any-return]


def unetr(patch: int, num_classes: int) -> nn.Module:
    from monai.networks.nets import UNETR

    return UNETR(in_channels=1, out_channels=num_classes, img_size=(patch,) * 3)  # type: ignore[no-any-return]


def plain_conv_unet(patch: int, num_classes: int) -> nn.Module:
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    stages = num_stages(patch)
    decoder = {"n_conv_per_stage_decoder": (2,) * (stages - 1)}
    return PlainConvUNet(n_conv_per_stage=(2,) * stages, **decoder, **_usual(stages, num_classes))  # type: ignore[no-any-return]


def residual_encoder_unet(patch: int, num_classes: int) -> nn.Module:
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    stages = num_stages(patch)
    decoder = {"n_conv_per_stage_decoder": (1,) * (stages - 1)}
    blocks = RESIDUAL_BLOCKS[:stages]
    return ResidualEncoderUNet(n_blocks_per_stage=blocks, **decoder, **_usual(stages, num_classes))  # type: ignore[no-any-return]


PEERS: dict[str, Callable[[int, int], nn.Module]] = {
    "SwinUNETR": swin_unetr,
    "UNETR": unetr,
    "PlainConvUNet": plain_conv_unet,
    "ResidualEncoderUNet": residual_encoder_unet,
}


def build_peer(name: str, *, patch: int, num_classes: int) -> nn.Module:
    """One of PEERS; MissingPackage when its package is not installed."""
    try:
        return PEERS[name](patch, num_classes)
    except ModuleNotFoundError as err:
        package = (err.name or "").split(".")[0]
        raise MissingPackage(f"{name} needs {package}", fix=INSTALL.get(package, f"pip install {package}")) from err


def num_stages(patch: int) -> int:
    stages = 1
    while stages < len(FEATURES) and patch % 2**stages == 0 and patch // 2**stages >= SMALLEST:
        stages += 1
    return stages


def _usual(stages: int, num_classes: int) -> dict[str, Any]:
    return {
        "input_channels": 1,
        "n_stages": stages,
        "features_per_stage": FEATURES[:stages],
        "conv_op": nn.Conv3d,
        "kernel_sizes": 3,
        "strides": (1,) + (2,) * (stages - 1),
        "num_classes": num_classes,
        "conv_bias": True,
        "norm_op": nn.InstanceNorm3d,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
    }
