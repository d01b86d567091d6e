"""DeepSpeed's MoE layer on one rank: equal logits, and which rows are left out when there is no room for all."""

import pytest
import torch
from torch import nn

from mri_ds.nn.moe import MixtureOfExperts
from mri_ds.nn.residual import ResidualMixture
from mri_ds.training import distributed
from mri_ds.training.expert_parallel import moe_layers, own_state, router_of
from mri_ds.training.native_moe import NativeMixture, _best, replace_mixtures

SECTION = {"autoep_size": 1, "capacity_factor": None, "eval_capacity_factor": None, "min_capacity": 1}


@pytest.fixture(scope="module", autouse=True)
def world_of_one():
    distributed.start(60)
    yield
    distributed.stop()


def pair(top_k=2, residual=False, **section):
    """The same weights twice: our layer inside a module, and that module with DeepSpeed's layer in its place."""
    torch.manual_seed(top_k)
    mixture = MixtureOfExperts(8, num_experts=4, expert_hidden=16, top_k=top_k)
    mixture.gate.e_score_correction_bias += torch.tensor([0.3, -0.1, 0.0, -0.2])
    ours = nn.ModuleDict({"moe": ResidualMixture(mixture) if residual else mixture})
    theirs = nn.ModuleDict({"moe": ResidualMixture(mixture) if residual else mixture})
    theirs.load_state_dict(ours.state_dict())
    assert replace_mixtures(theirs, SECTION | section) == 1
    for module in theirs.modules():
        if hasattr(module, "set_deepspeed_parallelism"):  # as deepspeed.initialize does
            module.set_deepspeed_parallelism()
    return ours, theirs


@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("factor", [None, 4.0])
def test_with_room_for_all_the_outputs_are_ours(top_k, residual, factor):
    """The selection bias of 0.3 changes who is chosen, not how much it counts."""
    ours, theirs = pair(top_k, residual, capacity_factor=factor, eval_capacity_factor=factor)
    tokens = torch.randn(2, 50, 8)
    torch.testing.assert_close(theirs["moe"](tokens), ours["moe"](tokens), rtol=1e-5, atol=1e-6)
    ((_, layer),) = moe_layers(theirs)
    assert isinstance(layer, NativeMixture) and router_of(layer).out_features == 4


@pytest.mark.parametrize("residual", [False, True])
def test_state_comes_back_under_our_names(residual):
    ours, theirs = pair(residual=residual)
    state = own_state(theirs, dict(theirs.named_parameters()) | dict(theirs.named_buffers()))
    expected = ours.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(state[name], value), name


def test_the_best_rows_stay():
    scores = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.3, 0.7]])
    is_chosen = torch.tensor([[True, False], [True, True], [True, False], [False, True]])
    assert _best(scores, is_chosen, 2).tolist() == [[True, False], [False, True], [True, False], [False, True]]
    assert torch.equal(_best(scores, is_chosen, 9), is_chosen)


def test_a_token_that_lost_an_expert_is_the_other_ones_alone():
    """Capacity 1 of 4 experts: each keeps its best row, the kept weights of a token sum to one, and who has none gives 0."""
    ours, theirs = pair(capacity_factor=1e-6, eval_capacity_factor=1e-6, min_capacity=1)
    tokens = torch.randn(1, 6, 8)
    got = theirs["moe"](tokens)[0]
    mixture = ours["moe"]
    scores = nn.functional.linear(tokens[0], mixture.gate.weight).softmax(-1)
    chosen = (scores + mixture.gate.e_score_correction_bias).topk(2).indices
    scores = scores / scores.gather(1, chosen).sum(1, keepdim=True)
    expected = torch.zeros_like(got)
    total = torch.zeros(6, 1)
    for expert in range(4):
        rows = [row for row in range(6) if expert in chosen[row]]
        if not rows:
            continue
        best = max(rows, key=lambda row: scores[row, expert].item())
        gate, up = (tokens[0, best] @ mixture.experts.gate_up_proj[expert].t()).chunk(2)
        out = (nn.functional.silu(gate) * up) @ mixture.experts.down_proj[expert].t()
        expected[best] += scores[best, expert] * out
        total[best] += scores[best, expert]
    torch.testing.assert_close(got, expected / total.clamp_min(1e-20), rtol=1e-4, atol=1e-6)
    assert (total == 0).any() and (got[total[:, 0] == 0] == 0).all()
