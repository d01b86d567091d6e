"""The routers' losses in what an objective returns: value, gradient, once under recomputation, never in evaluation."""

import pytest
import torch

from mri_ds.losses.routing import balance_loss, router_z_loss
from mri_ds.training.engine import build_objective
from mri_ds.training.parity import case as cases
from mri_ds.training.router_penalty import RouterPenalty


def made():
    torch.manual_seed(0)
    return build_objective(cases.run_config("sgd"))


def expected_loss(objective, batch):
    """From the mixtures' inputs, caught on their way."""
    caught = []
    hooks = [
        block.moe.register_forward_pre_hook(lambda moe, args: caught.append((moe, args[0])))
        for block in objective.net.encoder.blocks
    ]
    loss = objective(batch)["loss"]
    for hook in hooks:
        hook.remove()
    penalties = []
    for moe, tokens in caught:
        logits = tokens.flatten(0, 1) @ moe.gate.weight.T
        penalties.append(0.5 * router_z_loss(logits) + 0.25 * balance_loss(logits, logits.topk(moe.top_k).indices))
    return loss + sum(penalties) / len(penalties)


@pytest.mark.parametrize("recompute", ["none", "block"])
def test_loss_and_gradient_are_the_plain_sum(recompute):
    batch, plain = cases.global_batch(1), made()
    expected = expected_loss(plain, batch)
    expected.backward()
    objective = made()
    RouterPenalty(objective, z=0.5, balance=0.25)
    objective.net.encoder.recompute = recompute
    for _ in range(2):  # the second step starts afresh
        objective.zero_grad()
        found = objective(batch)["loss"]
        found.backward()
        torch.testing.assert_close(found, expected)
        for (name, p), q in zip(objective.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_evaluation_and_zero_coefficients_add_nothing():
    batch = cases.global_batch(1)
    objective = made().eval()
    plain = objective(batch)["loss"]
    RouterPenalty(objective, z=0.5, balance=0.25)
    assert torch.equal(objective(batch)["loss"], plain)
    with torch.no_grad():
        assert torch.equal(objective.train()(batch)["loss"], plain), "no drop path in this network"
    unheard = made()
    RouterPenalty(unheard, z=0.0, balance=0.0)
    assert not unheard._forward_hooks and not unheard._forward_pre_hooks
