"""Heads on streams of their own: the same bits as one after another, however the GPU orders them."""

import pytest
import torch

from mri_ds.heads.parallel import ParallelKANHead

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

OUTPUTS = {"age": 1, "lesion": 3, "type": 2, "volume": 1, "stage": 3}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [4, 4096])
def test_streams_change_no_bit(rows, dtype):
    """Twenty steps whose inputs are written just before and freed just after: a missing wait would read or give away memory."""
    torch.manual_seed(0)
    head = ParallelKANHead(44, OUTPUTS).to("cuda", dtype)
    for _ in range(20):
        raw = {task: torch.randn(rows, 44, device="cuda", dtype=dtype) for task in OUTPUTS}
        grads = []
        for way in (head, head.one_after_another):
            out = way({task: (2 * x).tanh() for task, x in raw.items()})
            loss = torch.stack([y.float().square().mean() for y in out.values()]).sum()
            grads.append([*(y.detach() for y in out.values()), *torch.autograd.grad(loss, list(head.parameters()))])
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
