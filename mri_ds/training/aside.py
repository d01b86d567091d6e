"""A look at the net in the middle of training that leaves no trace in it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def aside(net: nn.Module) -> Iterator[None]:
    """While it lasts: evaluation mode, no gradients. Afterwards training mode, and every buffer as it was.

    Among the buffers are the counts of rows per expert, by which training evens out their loads.
    """
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    net.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        net.train()
        for name, value in net.named_buffers():
            value.copy_(buffers[name])
