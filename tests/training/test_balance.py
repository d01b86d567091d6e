"""Counting what experts are visited: once per token, whatever runs again; by task; and what follows from the counts."""

import pytest
import torch
from torch import nn

from mri_ds.nn.moe import MixtureOfExperts
from mri_ds.training.engine import build_objective
from mri_ds.training.expert_load import PATIENCE, ExpertLoad
from mri_ds.training.parity import case as cases
from mri_ds.training.router_penalty import RouterPenalty

TOKENS = (cases.SIDE // 4) ** 3  # of one subject
TASKS = ["ball", "size", "radius"]


@pytest.fixture
def objective():
    torch.manual_seed(0)
    return build_objective(cases.run_config("adamw"))


def layers(objective) -> list[MixtureOfExperts]:
    return [block.moe for block in objective.net.encoder.blocks]


def oracle(objective, batch) -> torch.Tensor:
    """(L, E): the layers' inputs, caught on their way, through plain arithmetic of the router's weights."""
    caught = []
    hooks = [layer.register_forward_pre_hook(lambda m, args: caught.append((m, args[0].detach()))) for layer in layers(objective)]
    with torch.no_grad():
        objective(batch)
    for hook in hooks:
        hook.remove()
    counts = torch.zeros(len(caught), 4, dtype=torch.int64)
    for index, (layer, tokens) in enumerate(caught):
        scores = (tokens.reshape(-1, tokens.shape[-1]) @ layer.gate.weight.T).softmax(-1) + layer.gate.e_score_correction_bias
        for row in scores:
            for expert in row.topk(layer.top_k).indices:
                counts[index, expert] += 1
    return counts


@pytest.mark.parametrize("recompute", ["none", "block"])
def test_a_token_counts_once(objective, recompute):
    """Also where blocks run again in the backward pass, and where pictures and validation run between the steps."""
    batch = cases.global_batch(1)
    expected = oracle(objective, batch)
    assert (expected.sum(dim=1) == cases.GLOBAL_BATCH * TOKENS * 2).all()
    load = ExpertLoad(objective, TASKS)
    objective.net.encoder.recompute = recompute
    objective(batch)["loss"].backward()
    with torch.no_grad():
        objective(batch)  # validation
    objective.net(batch["image"], batch["spacing_mm"])  # a picture
    objective.eval()
    objective(batch)
    assert torch.equal(load._in_step, expected)


def test_bias_moves_towards_even_load(objective):
    """By hand: counts 6, 2, 0, 0 have mean 2; an expert with three times the mean moves no further than one with twice."""
    load = ExpertLoad(objective, TASKS)
    load._in_step[0] = torch.tensor([6, 2, 0, 0])
    load._in_step[1] = torch.tensor([3, 1, 2, 2])
    load.balance(rate=0.4)
    first, second = (layer.gate.e_score_correction_bias for layer in layers(objective))
    torch.testing.assert_close(first, torch.tensor([-0.1, 0.0, 0.1, 0.1]))
    torch.testing.assert_close(second, torch.tensor([-0.05, 0.05, 0.0, 0.0]))
    assert load.scalars() == {"layer0": 3.0, "layer1": 1.5}
    assert load.scalars() == {"layer0": 0.0, "layer1": 0.0}, "told once"


def test_every_step_balances(objective):
    """A router that prefers two experts is brought to an even load, and told as it was over the whole window."""
    load = ExpertLoad(objective, TASKS)
    with torch.no_grad():
        for layer in layers(objective):
            layer.gate.e_score_correction_bias[:2] += 1.0
    told = []
    for step in range(60):
        objective(cases.global_batch(step % 4))
        load.balance(rate=0.5)
        told.append(load.scalars()["layer0"])
    assert told[0] == 2.0  # all tokens at two of four experts
    assert told[-1] < 1.3


class Autoencoder(nn.Module):
    """One mixture that learns to give its tokens back: routing as it comes, with nothing else that could even it out."""

    def __init__(self):
        super().__init__()
        self.moe = MixtureOfExperts(16, num_experts=8, expert_hidden=16, top_k=2)

    def forward(self, batch):
        tokens = batch["image"]
        return {"loss": (self.moe(tokens) - tokens).square().mean()}


def load_after_200_steps(*, rate: float, balance: float) -> float:
    """Busiest expert over the mean in the last ten steps, on tokens most of whose length is the same in all of them."""
    torch.manual_seed(0)
    objective = Autoencoder()
    load = ExpertLoad(objective, ["any"])
    RouterPenalty(objective, z=0.0, balance=balance)
    common = 3 * torch.randn(16)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=2e-3)
    told = {}
    for step in range(200):
        tokens = common + torch.randn(4, 128, 16)
        objective({"image": tokens, "mask": {"any": torch.ones(4)}})["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        load.balance(rate=rate)
        if step in (189, 199):
            told = load.scalars()
    return told["layer0"]


def test_a_skewed_set_is_spread_over_the_experts_by_either_way_of_balancing_and_by_none_is_not():
    """Switch's loss weighs 1 here: this task pulls its router against it, and 0.1 leaves the two pulls even at a load of 2."""
    off, bias, switch = (load_after_200_steps(rate=r, balance=b) for r, b in [(0.0, 0.0), (0.1, 0.0), (0.0, 1.0)])
    assert off > 3, f"skewed, {off:.2f} of at most 4"
    assert bias <= 1.5 and switch <= 1.5, (bias, switch)


def test_load_of_a_task_is_that_of_its_subjects(objective):
    batch = cases.global_batch(1)
    for task in TASKS:
        batch["mask"][task].zero_()
    batch["mask"]["size"][2] = 1.0
    alone = {
        key: {k: v[2:3] for k, v in value.items()} if isinstance(value, dict) else value[2:3] for key, value in batch.items()
    }
    expected = oracle(objective, alone).float()
    load = ExpertLoad(objective, TASKS)
    objective(batch)
    load.balance(rate=0.0)
    told = load.scalars()
    assert set(told) == {"layer0", "layer1", "layer0/size", "layer1/size"}, "no other task has a label"
    for index in range(2):
        assert told[f"layer{index}/size"] == pytest.approx(float(expected[index].max() / expected[index].mean()))


def test_a_collapse_is_told_once_with_layer_and_fix(objective):
    load = ExpertLoad(objective, TASKS)
    with torch.no_grad():
        layers(objective)[1].gate.e_score_correction_bias[0] += 10.0  # all tokens: twice its share, of at most twice
    warnings = []
    for step in range(PATIENCE + 3):
        objective(cases.global_batch(step))
        load.balance(rate=0.0)
        load.scalars()
        warnings.append(load.warnings(rate=0.1))
    assert [bool(w) for w in warnings] == [False] * (PATIENCE - 1) + [True] + [False] * 3
    (line,) = warnings[PATIENCE - 1]
    assert "net.encoder.blocks.1.moe" in line and "training.balance_rate (now 0.1)" in line


def test_a_net_without_experts_has_no_load():
    config = cases.run_config("adamw")
    config.model.use_moe = False
    load = ExpertLoad(build_objective(config), TASKS)
    load.balance(rate=0.1)
    assert load.scalars() == {} and load.warnings(rate=0.1) == []
