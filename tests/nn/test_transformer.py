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


def twice(x):
    return 2 * x


@pytest.mark.parametrize("skip", [False, True])
def test_stochastic_depth_keeps_the_expectation_and_drops_whole_samples(skip):
    torch.manual_seed(0)
    out = StochasticDepth(0.25, skip=skip).train()(torch.ones(20_000, 3), twice)
    assert ((out == 0).all(dim=1) | (out == 2 / 0.75).all(dim=1)).all()
    assert out.mean().item() == pytest.approx(2.0, abs=0.04)


@pytest.mark.parametrize("skip", [False, True])
def test_stochastic_depth_is_the_branch_in_eval_and_at_zero(skip):
    x = torch.randn(4, 3)
    assert torch.equal(StochasticDepth(0.5, skip=skip).eval()(x, twice), twice(x))
    assert torch.equal(StochasticDepth(0.0, skip=skip).train()(x, twice), twice(x))
    with pytest.raises(ValueError, match="0 <= prob < 1"):
        StochasticDepth(1.0)


def test_skipping_sends_only_kept_samples_through_the_branch_and_calls_it_when_there_is_none():
    seen, drop = [], StochasticDepth(0.6, skip=True).train()
    torch.manual_seed(0)
    for _ in range(60):
        out = drop(torch.ones(2, 3), lambda x: seen.append(len(x)) or x)
        assert (out != 0).any(dim=1).sum() == seen[-1]
    assert set(seen) == {0, 1, 2}


@pytest.mark.parametrize("options", [{}, {"window": (2, 2, 2)}, {"use_moe": False}, {"residual_experts": True}])
@pytest.mark.parametrize("recompute", ["none", "block"])
def test_skipping_changes_neither_result_nor_gradient(options, recompute):
    """The same dice for both; over the draws both samples, one, or none are left to a branch."""
    nets = [encoder(drop_path=0.6, skip_dropped=skip, **options) for skip in (False, True)]
    nets[1].recompute = recompute
    seen = []
    nets[1].blocks[2].attention.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    for seed in range(8):
        tokens, outs = torch.randn(2, 24, 16), []
        for net in nets:
            torch.manual_seed(seed)
            net.zero_grad()
            outs.append(net(tokens, (2, 3, 4)))
            outs[-1].square().sum().backward()
        torch.testing.assert_close(outs[1], outs[0], rtol=1e-5, atol=1e-5)
        for (name, a), b in zip(nets[1].named_parameters(), nets[0].parameters(), strict=True):
            assert a.grad is not None, name  # every module took part: under ZeRO-3 every rank sends its share
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)
    assert set(seen) == {0, 1, 2}


def test_chances_grow_linearly_with_depth():
    assert [block.drop.prob for block in encoder(drop_path=0.4).blocks] == pytest.approx([0.0, 0.2, 0.4])
