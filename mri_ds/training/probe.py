"""The picture of a run: a slice of an image beside truth and prediction.

Axes: B batch, C channel, D H W voxels; the slice is across W.
"""

from typing import Any

import numpy as np
import torch

from mri_ds.sample import Batch
from mri_ds.training.aside import aside
from mri_ds.training.distributed import to_device


def draw_probe(net: Any, batch: Batch) -> np.ndarray | None:
    """Middle slice of the batch's first image beside truth and prediction, (H, 3W, 3) uint8. Every rank must call it.

    None without a segmentation task.
    """
    batch = to_device(batch)
    with aside(net):
        out = net(batch["image"].to(next(net.parameters()).dtype), batch["spacing_mm"])
    tasks = [t for t, x in out.items() if x.ndim == 5]
    if not tasks:
        return None
    task = tasks[0]
    return draw_slices(batch["image"][0, 0], batch["targets"][task][0], out[task][0].argmax(0))


def draw_slices(image: torch.Tensor, truth: torch.Tensor | None, guess: torch.Tensor) -> np.ndarray:
    """Middle slices of image, truth and guess, all (D, H, W), side by side: (H, 3D, 3) uint8; without truth its pane

    l is plain.
    """
    middle = image.shape[-1] // 2
    gray = image[:, :, middle].float()
    gray = (gray - gray.min()) / (gray.max() - gray.min()).clamp_min(1e-6)
    labels = [None, None if truth is None else truth[:, :, middle], guess[:, :, middle]]
    return np.concatenate([np.rot90(_colour(gray, label)) for label in labels], axis=1)


PALETTE = np.array(
    [[0, 0, 0], [230, 60, 60], [70, 160, 255], [80, 200, 90], [250, 200, 50], [190, 100, 240], [255, 130, 30], [120, 230, 230]]
)


def _colour(gray: torch.Tensor, labels: torch.Tensor | None) -> np.ndarray:
    rgb = np.repeat(gray.cpu().numpy()[..., None], 3, axis=-1) * 255
    if labels is not None:
        index = labels.cpu().numpy()
        rgb = np.where(index[..., None] > 0, 0.5 * rgb + 0.5 * PALETTE[(index - 1) % 7 + 1], rgb)
    return np.asarray(rgb, dtype=np.uint8)
