"""Linear layers under ZeRO-3: PyTorch's own figures, and nothing kept of a weight that is to be released."""

import pytest
import torch
import torch.nn.functional as F

from mri_ds.training.distributed import prepare_environment
from mri_ds.training.resident import _add_bias_in_the_product

SHAPES = [(16,), (5, 16), (4, 27, 16), (2, 3, 4, 16), (0, 3, 16)]


@pytest.fixture
def linears(monkeypatch):
    """(PyTorch's, DeepSpeed's, ours), as they stand after an engine of ZeRO-3 was built."""
    prepare_environment()
    from deepspeed.runtime.zero.linear import zero3_linear_wrap
    from deepspeed.runtime.zero.partition_parameters import InsertPostInitMethodToModuleSubClasses as Replaced

    plain = getattr(Replaced, "linear_bk", F.linear)
    monkeypatch.setattr(Replaced, "linear_bk", plain, raising=False)
    monkeypatch.setattr(F, "linear", zero3_linear_wrap)
    _add_bias_in_the_product()
    return plain, zero3_linear_wrap, F.linear


def layer(*, is_resident: bool) -> tuple[torch.nn.Parameter, torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    weight, bias = (torch.nn.Parameter(torch.randn(*shape, generator=generator).bfloat16()) for shape in ((24, 16), (24,)))
    weight.ds_persist = bias.ds_persist = is_resident
    return weight, bias


@pytest.mark.parametrize("is_resident", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_bf16_is_rounded_as_pytorch_rounds_it(linears, shape, is_resident):
    plain, deepspeed, ours = linears
    weight, bias = layer(is_resident=is_resident)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert torch.equal(ours(x, weight, bias), plain(x, weight, bias))
    assert torch.equal(ours(x, weight), plain(x, weight))
    if shape == (4, 27, 16):
        assert not torch.equal(deepspeed(x, weight, bias), plain(x, weight, bias)), "or there is nothing to mend"


@pytest.mark.parametrize("is_resident", [True, False])
def test_gradients(linears, is_resident):
    plain, _, ours = linears
    weight, bias = (p.detach().double().requires_grad_() for p in layer(is_resident=is_resident))
    weight.ds_persist = is_resident
    x = torch.randn(4, 27, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    mine, theirs = (torch.autograd.grad(one(x, weight, bias).square().sum(), (x, weight, bias)) for one in (ours, plain))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_sharded_weight_is_kept_by_no_view(linears):
    """A view would hold the gathered weight in memory until backward."""
    plain, _, ours = linears
    weight, bias = layer(is_resident=False)
    x = torch.randn(4, 27, 16).bfloat16().requires_grad_()
    for linear, is_kept in ((plain, True), (ours, False)):
        views = []

        def note(saved, views=views):
            views.append(saved._is_view() and saved.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr())
            return saved

        with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
            linear(x, weight, bias)
        assert any(views) is is_kept
