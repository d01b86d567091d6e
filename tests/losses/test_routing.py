"""Losses of a router against their formulas, written out token by token."""

import math

import pytest
import torch

from mri_ds.losses.routing import balance_loss, router_z_loss


@pytest.mark.parametrize("top_k", [1, 2])
def test_both_equal_their_formulas(top_k):
    logits = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    chosen = logits.topk(top_k).indices
    z = sum(math.log(sum(math.exp(x) for x in row)) ** 2 for row in logits.tolist()) / 7
    torch.testing.assert_close(router_z_loss(logits), torch.tensor(z))
    share = [sum(e in row for row in chosen.tolist()) / (7 * top_k) for e in range(4)]
    prob = [sum(math.exp(row[e]) / sum(math.exp(x) for x in row) for row in logits.tolist()) / 7 for e in range(4)]
    torch.testing.assert_close(balance_loss(logits, chosen), torch.tensor(4 * sum(f * p for f, p in zip(share, prob))))


def test_even_is_one_and_the_worst_is_experts_over_choices():
    even = balance_loss(torch.zeros(8, 4), torch.tensor([[e % 4, (e + 1) % 4] for e in range(8)]))
    torch.testing.assert_close(even, torch.tensor(1.0))
    sure = torch.tensor([60.0, 60.0, -60.0, -60.0]).expand(8, 4)
    torch.testing.assert_close(balance_loss(sure, sure.topk(2).indices), torch.tensor(2.0))


def test_gradcheck_and_finite_in_half_precision():
    logits = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    chosen = logits.detach().topk(2).indices
    assert torch.autograd.gradcheck(router_z_loss, logits)
    assert torch.autograd.gradcheck(lambda x: balance_loss(x, chosen), logits)
    for dtype in (torch.bfloat16, torch.float16):
        sure = (60 * torch.eye(4)).to(dtype).requires_grad_()
        loss = router_z_loss(sure) + balance_loss(sure, sure.topk(1).indices)
        loss.backward()
        assert loss.dtype == torch.float32 and loss.isfinite() and sure.grad.isfinite().all()
