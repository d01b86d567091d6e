"""What one volume costs a network of some scale: arithmetic to predict it, memory to learn from it.

Axes: D H W voxels; E experts.
Arithmetic is counted by PyTorch's own counter on the meta device, where nothing is computed or held; experts are taken to be
evenly loaded, and each token visits as many as it always does. Memory is that of `mri-ds plan`.
"""

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from mri_ds.mri_network import BaseMRINet
from mri_ds.training.plan.layout import Layout
from mri_ds.training.plan.memory import memory
from mri_ds.training.plan.parameters import count
from mri_ds.training.plan.science import science_of
from mri_ds.training.plan.trace import even_experts, trace

EDGE = 128  # voxels along each axis


def cost(scale: str, *, edge: int = EDGE) -> dict[str, Any]:
    """{"volume", "flops_volume": of one forward pass, two to a multiply-add, "training_bytes"}.

    training_bytes: the most one device holds that trains on one volume at a time in bfloat16, blocks recomputed, with the master
    weights and moments of AdamW and without what the device's own libraries take.
    """
    config = science_of(scale, overrides=[f"data.patch=[{edge},{edge},{edge}]"])
    layout = Layout(nodes=1, slots=1, zero=0, recompute="block", reduce_bucket=0)
    traced = trace(config, micro_batch=1, precision=layout.precision, recompute=layout.recompute)
    held = memory(count(config), layout, traced).peak
    return {"volume": [edge] * 3, "flops_volume": forward_flops(scale, edge=edge), "training_bytes": held}


def forward_flops(scale: str, *, edge: int = EDGE) -> int:
    """Floating-point operations of products and convolutions for one volume of edge^3 voxels, one channel, three tasks."""
    config = science_of(scale)
    with torch.device("meta"):
        net = BaseMRINet(config.model, config.tasks).eval()
    even_experts(net.requires_grad_(False))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.empty(1, config.model.in_channels, edge, edge, edge, device="meta"))
    return int(counter.get_total_flops())
