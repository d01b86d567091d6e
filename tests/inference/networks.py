"""Run folders with small untrained networks whose every weight counts, as training leaves them; and images for them."""

from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from mri_ds.config import DataConfig, RunConfig, TaskConfig, dump_config, load_config
from mri_ds.data.manifest import Fingerprint, Manifest, write_manifest
from mri_ds.mri_network import BaseMRINet

SPACING = (1.0, 1.1, 1.5)
TASKS = {
    "tissue": TaskConfig(kind="segmentation", classes=["background", "grey", "white"]),
    "grade": TaskConfig(kind="classification", classes=["none", "few", "many"]),
    "age": TaskConfig(kind="regression", unit="years", mean=50, std=10),
}


def write_run(folder: Path, *, seed: int = 0, spacing_mm=SPACING, tasks=TASKS, name: str = "model.safetensors", **data) -> Path:
    """An untrained network of two layers, 16 wide, that looks at 16^3 voxels."""
    small = {"embed_dim": 24, "num_layers": 1, "num_heads": 2, "num_experts": 2, "expert_hidden": 16, "token_stride": (4, 4, 4)}
    model = load_config(scale="tiny").model.model_copy(update=small)
    config = RunConfig(model=model, data=DataConfig(spacing_mm=spacing_mm, patch=(16, 16, 16), **data), tasks=tasks)
    torch.manual_seed(seed)
    net = BaseMRINet(config.model, config.tasks)
    for parameter in net.parameters():  # an untrained head is all bias
        nn.init.normal_(parameter, std=0.2) if parameter.ndim > 1 else None
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in net.state_dict().items()}, folder / name)
    (folder / "config.yaml").write_text(dump_config(config))
    fingerprint = Fingerprint(median_spacing_mm=spacing_mm, median_shape=(16, 16, 16))
    manifest = Manifest(
        format_version=1, layout="folder", channels=["T1w"], tasks=tasks, splits={}, fingerprint=fingerprint, skipped=[]
    )
    write_manifest(manifest, folder / "manifest.json")
    return folder


def write_image(path: Path, *, seed: int = 0, shape=(18, 21, 17), spacing_mm=SPACING) -> Path:
    """Smooth noise, lying obliquely to no axis, flipped along the first."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=tuple(-(-n // 4) for n in shape))
    voxels = np.kron(coarse, np.ones((4, 4, 4)))[: shape[0], : shape[1], : shape[2]] + 0.1 * rng.normal(size=shape)
    affine = np.diag([-spacing_mm[0], *spacing_mm[1:], 1.0])
    affine[:3, 3] = (30, -12, 5)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image((100 + 20 * voxels).astype(np.float32), affine), path)
    return path
