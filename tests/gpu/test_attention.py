"""Attention on a GPU: every back end it has, and windows, against the same module on the CPU."""

import copy

import pytest
import torch

from mri_ds.nn.attention import FlashAttention, SparseAttention
from mri_ds.nn.backends import BackendsRan

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.parametrize("backend", ["flash", "cudnn", "efficient", "math"])
def test_each_back_end_runs_and_equals_the_cpu(backend):
    torch.manual_seed(0)
    on_cpu, module, tokens = FlashAttention(128, 4), FlashAttention(128, 4, backends=[backend]), torch.randn(1, 512, 128)
    module.load_state_dict(on_cpu.state_dict())
    expected = on_cpu(tokens, (8, 8, 8))
    with BackendsRan() as ran:
        result = module.to("cuda", torch.bfloat16)(tokens.to("cuda", torch.bfloat16), (8, 8, 8))
    assert ran.names == [backend]
    torch.testing.assert_close(result.float().cpu(), expected, rtol=0, atol=0.02 * float(expected.abs().max()))


def test_windows_equal_the_cpu_forward_and_backward():
    torch.manual_seed(0)
    module, tokens = SparseAttention(32, 2, window=(4, 4, 4), shift=True).double(), torch.randn(2, 315, 32).double()
    found = []
    for device in ("cpu", "cuda"):
        there, inputs = copy.deepcopy(module).to(device), tokens.to(device).requires_grad_()
        out = there(inputs, (5, 7, 9))
        found.append([out, *torch.autograd.grad(out.square().sum(), [inputs, *there.parameters()])])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b.cpu(), rtol=1e-9, atol=1e-9)
