"""Oracle: a plain loop over experts with autograd, in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F

from mri_ds.nn.grouped import grouped_swiglu
from mri_ds.nn.moe import MixtureOfExperts, arrange


def plain_loop(moe: MixtureOfExperts, tokens: torch.Tensor) -> torch.Tensor:
    """Every token visits each of its experts one at a time."""
    rows = tokens.reshape(-1, tokens.shape[-1])
    scores = (rows @ moe.gate.weight.t()).softmax(-1)
    out = torch.zeros_like(rows)
    for t, row in enumerate(rows):
        chosen = (scores[t] + moe.gate.e_score_correction_bias).topk(moe.top_k).indices
        for e in chosen:
            gate, up = (moe.experts.gate_up_proj[e] @ row).chunk(2)
            out[t] += scores[t, e] / scores[t, chosen].sum() * (moe.experts.down_proj[e] @ (F.silu(gate) * up))
    return out.view_as(tokens)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_equals_a_plain_loop_over_experts_with_its_gradients(top_k):
    torch.manual_seed(0)
    moe = MixtureOfExperts(12, num_experts=5, expert_hidden=7, top_k=top_k)
    tokens = torch.randn(2, 9, 12, requires_grad=True)
    ours, theirs = moe(tokens), plain_loop(moe, tokens)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    probe = torch.randn_like(ours)
    inputs = [tokens, *moe.parameters()]
    for a, b in zip(torch.autograd.grad(ours, inputs, probe), torch.autograd.grad(theirs, inputs, probe), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_selection_bias_chooses_but_does_not_weigh():
    torch.manual_seed(0)
    moe = MixtureOfExperts(8, num_experts=4, expert_hidden=4, top_k=1)
    moe.gate.e_score_correction_bias[2] = 10.0
    weights, chosen, _ = moe.gate(torch.randn(6, 8), top_k=1)
    assert (chosen == 2).all()
    torch.testing.assert_close(weights, torch.ones(6, 1))


def test_grouped_swiglu_passes_gradcheck_with_idle_experts_and_padding_rows():
    torch.manual_seed(0)
    rows = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)  # the last two rows belong to no expert
    gate, up = (torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    down = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    counts = torch.tensor([2, 0, 3, 0])
    assert torch.autograd.gradcheck(lambda *x: grouped_swiglu(x[0], counts, *x[1:]), (rows, gate, up, down))
    assert (grouped_swiglu(rows, counts, gate, up, down)[5:] == 0).all()
    fused = torch.cat([gate, up], dim=1).detach().requires_grad_()  # the layout of our own layer
    assert torch.autograd.gradcheck(lambda *x: grouped_swiglu(x[0], counts, *x[1:]), (rows, fused, down))
    torch.testing.assert_close(grouped_swiglu(rows, counts, fused, down), grouped_swiglu(rows, counts, gate, up, down))


def test_rows_are_arranged_as_counted_by_hand():
    """Six rows choose experts 2, 0, 2, 2, 0, 2 of three; runs are multiples of 4."""
    chosen = torch.tensor([[2, 0], [2, 2], [0, 2]])
    token, place, places = arrange(chosen, 3, together=4)
    assert places.tolist() == [4, 0, 4] and len(token) == 6 + 3 * 3
    assert place.tolist() == [4, 0, 5, 6, 1, 7]  # expert 0 from 0 on, expert 2 from 4 on
    assert token[place].tolist() == [0, 0, 1, 1, 2, 2]  # every choice finds its own row
    token, place, places = arrange(chosen, 3, together=1)
    assert places.tolist() == [2, 0, 4] and token.tolist() == [0, 2, 0, 1, 1, 2]


def test_bfloat16_with_runs_filled_up_equals_a_plain_loop_and_what_fills_up_teaches_nothing():
    """37 rows over 5 experts: no run is a multiple of 16. The loop works in float64 on the same numbers."""
    torch.manual_seed(0)
    moe = MixtureOfExperts(32, num_experts=5, expert_hidden=24).bfloat16()
    moe.gate.e_score_correction_bias[4] = -1.0  # an idle expert
    tokens = torch.randn(1, 37, 32).bfloat16().requires_grad_()
    exact = copy.deepcopy(moe).double()
    rows = tokens.detach().double().requires_grad_()
    ours, theirs = moe(tokens), plain_loop(exact, rows)
    probe = torch.randn_like(theirs).bfloat16()
    found = torch.autograd.grad(ours, [tokens, *moe.experts.parameters()], probe)
    wanted = torch.autograd.grad(theirs, [rows, *exact.experts.parameters()], probe.double())
    for a, b in zip((ours, *found), (theirs, *wanted), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=0.03 * b.abs().max().item())
    assert all((grad[4] == 0).all() for grad in found[1:])


def test_refuses_more_choices_than_experts():
    with pytest.raises(ValueError, match="top_k = 3 of 2 experts"):
        MixtureOfExperts(8, num_experts=2, expert_hidden=4, top_k=3)
