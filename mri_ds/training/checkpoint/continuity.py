"""The continuity gate: a run goes on only from what it was.

A checkpoint keeps the digests of all weights and moments (digest.py) and what a small stored batch gave: its loss, and the norm
of the loss's gradient with respect to the image, which runs back through every layer. After loading, on whatever layout, both
are made again. The digests must be equal bit for bit; the figures up to rounding, since another layout sums in another order.
The batch is one subject, the same on all ranks, in eval mode, so that no dice are thrown; the gradient of the image leaves every
gradient and every counter of the training alone.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mri_ds.sample import Batch
from mri_ds.training import distributed

TOLERANCE = 1e-4  # relative, in float32 on a CPU
COARSE = 2e-2  # half precision, or a GPU, whose convolutions round to TF32


def choose(batch: Batch) -> dict[str, Tensor]:
    """The subject of rank 0's batch with the most labels, as flat named tensors, the same on every rank. All must call it."""
    masks = torch.stack([mask.cpu().float() for mask in batch["mask"].values()])
    row = int((masks > 0).sum(0).argmax())
    named: dict[str, Tensor] = {}
    for key in ("image", "spacing_mm"):
        named[key] = batch[key]  # type: ignore[literal-required]
    for section in ("targets", "mask"):
        named |= {f"{section}/{task}": value for task, value in batch[section].items()}  # type: ignore[literal-required]
    return distributed.from_first_rank({k: v[row : row + 1].detach().cpu().contiguous() for k, v in named.items()})


def measure(engine: Any, probe: Mapping[str, Tensor]) -> dict[str, Any]:
    """{"loss", "gradient_norm", "is_coarse"} of the probe. Every rank must call it; training goes on as if nothing had been."""
    module = engine.module
    batch: Any = {"image": probe["image"], "spacing_mm": probe["spacing_mm"], "targets": {}, "mask": {}}
    for name, value in probe.items():
        section, _, task = name.partition("/")
        if task:
            batch[section][task] = value
    batch = distributed.to_device(batch)
    batch["image"].requires_grad_()
    was_training = module.training
    module.eval()
    with torch.enable_grad():
        loss = module(batch)["loss"]
        (gradient,) = torch.autograd.grad(loss, [batch["image"]])
    module.train(was_training)
    figures = {"loss": float(loss.detach()), "gradient_norm": float(gradient.double().norm())}
    is_half = any(engine.config.get(name, {}).get("enabled") for name in ("bf16", "fp16"))
    return {**distributed.average(figures), "is_coarse": is_half or torch.cuda.is_available()}


def departure(stored: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """ "" or how a figure differs from the stored one by more than rounding."""
    tolerance = COARSE if stored["is_coarse"] or now["is_coarse"] else TOLERANCE
    for name, words in (("loss", "loss"), ("gradient_norm", "gradient norm")):
        a, b = stored[name], now[name]
        if not math.isclose(a, b, rel_tol=tolerance, abs_tol=1e-8):
            return f"the {words} of the stored probe batch is {b:.8g} and was {a:.8g} when the checkpoint was written"
    return ""
