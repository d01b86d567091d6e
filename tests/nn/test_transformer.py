import copy

import pytest
import torch

from mri_ds.nn.transformer import Encoder, StochasticDepth


def encoder(**options):
    torch.manual_seed(0)
    settings = {"num_experts": 4, "expert_hidden": 8, "top_k": 2, **options}
    return Encoder(16, 3, 2, **settings)


@pytest.mark.parametrize("options", [{}, {"use_moe": False}, {"window": (2, 2, 2)}])
def test_recomputation_changes_neither_result_nor_gradient(options):
    plain = encoder(**options)
    again = copy.deepcopy(plain)
    again.recompute = "block"
    tokens = torch.randn(2, 24, 16)
    for net in (plain, again):
        net(tokens, (2, 3, 4)).square().sum().backward()
    torch.testing.assert_close(again(tokens, (2, 3, 4)), plain(tokens, (2, 3, 4)), rtol=0, atol=0)
    for a, b in zip(again.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-6)


def test_recomputation_draws_the_same_dropped_branches_again():
    net = encoder(drop_path=0.5)
    net.recompute = "block"
    tokens = torch.randn(8, 24, 16, requires_grad=True)
    torch.manual_seed(1)
    out = net(tokens, (2, 3, 4))
    grad = torch.autograd.grad(out.sum(), tokens)[0]
    net.recompute = "none"
    torch.manual_seed(1)
    torch.testing.assert_close(torch.autograd.grad(net(tokens, (2, 3, 4)).sum(), tokens)[0], grad)


def test_stochastic_depth_keeps_the_expectation_and_drops_whole_samples():
    torch.manual_seed(0)
    out = StochasticDepth(0.25).train()(torch.ones(20_000, 3))
    assert ((out == 0).all(dim=1) | (out == 1 / 0.75).all(dim=1)).all()
    assert out.mean().item() == pytest.approx(1.0, abs=0.02)


def test_stochastic_depth_is_the_identity_in_eval_and_at_zero():
    x = torch.randn(4, 3)
    assert StochasticDepth(0.5).eval()(x) is x
    assert StochasticDepth(0.0).train()(x) is x
    with pytest.raises(ValueError, match="0 <= prob < 1"):
        StochasticDepth(1.0)
