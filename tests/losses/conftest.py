import pytest
import torch


@pytest.fixture
def volumes():
    """Makes logits (2, K, D, H, W) and a target (2, D, H, W) of the first `present` classes."""

    def make(num_classes=4, *, present=3, shape=(5, 6, 7), dtype=torch.float32):
        generator = torch.Generator().manual_seed(0)
        logits = 3 * torch.randn(2, num_classes, *shape, generator=generator, dtype=dtype)
        return logits, torch.randint(0, present, (2, *shape), generator=generator)

    return make
