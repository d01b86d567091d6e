"""Rollout, expert maps and task attention against maps and routes computed another way: float64, pair by pair."""

import itertools

import numpy as np
import pytest
import torch
from scenes import make_run, make_sample, make_scene, naive_map
from torch import nn

from mri_ds.errors import InputError
from mri_ds.inference.explain import rollout as rollout_module
from mri_ds.inference.explain.attention_maps import pull_back
from mri_ds.inference.explain.experts import check_experts, expert_map, visits
from mri_ds.inference.explain.rollout import on_voxels, rollout
from mri_ds.inference.explain.scene import set_scene
from mri_ds.inference.explain.target import choose_targets
from mri_ds.inference.explain.task_attention import task_attention
from mri_ds.inference.run import Run
from mri_ds.nn.attention import FlashAttention, SparseAttention

WINDOWED = {"attention": "windowed", "window": (3, 2, 2), "num_layers": 3}


def shaken(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return module


@pytest.mark.parametrize("make", [FlashAttention, SparseAttention, lambda *a: SparseAttention(*a, window=(2, 3, 4), shift=True)])
@pytest.mark.parametrize("grid", [(4, 5, 3), (2, 7, 1)])
def test_what_weights_come_to_equals_the_float64_map(make, grid, monkeypatch):
    """Windows that do not divide the grid, shifts, a batch, and blocks of a few rows."""
    monkeypatch.setattr("mri_ds.inference.explain.attention_maps.SCORES_AT_ONCE", 300)
    torch.manual_seed(0)
    module, num = shaken(make(24, 2)), int(np.prod(grid))
    tokens, weights = torch.randn(2, num, 24), torch.rand(2, num)
    expected = naive_map(module, tokens, grid)
    assert np.allclose(expected.sum(-1), 1) and expected.min() >= 0
    with torch.no_grad():
        got = pull_back(module, tokens, grid, weights).numpy()
        rows = torch.cat([pull_back(module, tokens[:1], grid, row[None]) for row in torch.eye(num)]).numpy()
    np.testing.assert_allclose(got, np.einsum("bq,bqk->bk", weights.double().numpy(), expected), atol=2e-6)
    np.testing.assert_allclose(rows, expected[0], atol=2e-6)
    np.testing.assert_allclose(rows.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("model", [{"num_layers": 2}, WINDOWED], ids=["full", "windowed"])
def test_rollout_is_the_product_of_the_layers_maps(model):
    """One window: (A + 1) / 2 of every layer, multiplied in float64; read where each kind of task is read."""
    scene = make_scene((12, 16, 14), **model)
    given = {}

    def note(name):
        return lambda module, args, kwargs: given.__setitem__(name, (*args, *kwargs.values()))

    net = scene.net
    watched = {str(i): block.attention for i, block in enumerate(net.encoder.blocks)}
    watched |= {"image": net.cross_task.read_image, "tasks": net.cross_task.read_tasks}
    handles = [module.register_forward_pre_hook(note(name), with_kwargs=True) for name, module in watched.items()]
    with torch.no_grad():
        out = scene.look(scene.padded)
    for handle in handles:
        handle.remove()
    grid = given["0"][1]
    assert grid == (4, 4, 4) and len(scene.corners) == 1
    product = np.eye(64)
    for i in range(len(net.encoder.blocks)):
        product = (naive_map(watched[str(i)], *given[str(i)])[0] + np.eye(64)) / 2 @ product
    assert np.allclose(product.sum(-1), 1) and product.min() >= 0

    targets = choose_targets(scene, out, None, None)
    maps = rollout(scene, targets)
    queries, tokens = (x.double().numpy()[0] for x in given["image"])
    read = {name: x.detach().double().numpy() for name, x in watched["image"].state_dict().items()}
    q = queries @ read["query.weight"].T + read["query.bias"]
    k = (tokens @ read["key_value.weight"].T + read["key_value.bias"])[:, : q.shape[1]]
    width = q.shape[1] // 2
    of_image = np.mean([torch.softmax(torch.tensor(a @ b.T / width**0.5), -1).numpy() for a, b in zip(
        (q[:, :width], q[:, width:]), (k[:, :width], k[:, width:]))], axis=0)  # fmt: skip
    of_tasks = naive_map(watched["tasks"], given["tasks"][0], (2, 1, 1))[0]
    share = out["tissue"][0].softmax(0)[1:].sum(0).double().numpy()
    ends = {
        "tissue": share.reshape(4, 4, 4, 4, 4, 4).mean(axis=(1, 3, 5)).ravel(),
        "grade": ((of_tasks[0] + [1, 0]) / 2) @ of_image,
        "age": ((of_tasks[1] + [0, 1]) / 2) @ of_image,
    }
    crop = tuple(slice(b, b + n) for b, n in zip(scene.before, (12, 16, 14)))
    for target in targets:
        of_tokens = (ends[target.task] @ product).reshape(4, 4, 4)
        expected = np.kron(of_tokens, np.ones((4, 4, 4)))[crop]
        np.testing.assert_allclose(maps[target.label].numpy(), expected / expected.mean(), atol=2e-5)
        assert np.ptp(expected / expected.mean()) > 0.05
    assert np.allclose(task_attention(scene).mean(0).numpy(), of_tasks, atol=1e-6)
    assert np.allclose(task_attention(scene).sum(-1).numpy(), 1, atol=1e-5)


def test_rollout_of_what_is_nowhere_is_nothing_and_without_task_tokens_all_tokens_count_alike(monkeypatch):
    scene = make_scene((20, 16, 16), use_cross_task=False, num_layers=2)
    (target,) = choose_targets(scene, {}, "age", None)
    monkeypatch.setattr(rollout_module, "pull_back", lambda attention, tokens, grid, weights: weights)
    assert torch.allclose(rollout(scene, [target])["age"], torch.ones(20, 16, 16)), "blended windows of an even share are even"
    monkeypatch.setattr(rollout_module, "share_of", lambda scene, target, logits: torch.zeros(16, 16, 16))
    assert rollout(scene, choose_targets(scene, {}, "tissue", "white"))["tissue-white"].eq(0).all()


def test_a_tokens_voxels_by_hand():
    assert on_voxels(torch.arange(3).view(1, 1, 1, 1, 3), (1, 2, 4), (1, 1, 10))[0, 0, 0, 0].tolist() == [
        0, 0, 0, 0, 1, 1, 1, 1, 2, 2
    ]  # fmt: skip


def test_a_voxel_is_the_window_it_lies_most_centrally_in_by_hand():
    """Windows of 16 over 24 voxels start at 0 and 8: voxels 0..11 lie nearer to the first one's centre."""
    scene = make_scene((16, 16, 24))
    assert scene.corners == [(0, 0, 0), (0, 0, 8)]
    numbers = itertools.count(1)
    line = scene.chosen(lambda window: {"n": torch.full((1, 16, 16, 16), next(numbers))})["n"][0, 3, 5]
    assert line.tolist() == [1] * 12 + [2] * 12
    native = scene.ids_to_native(torch.arange(24).expand(16, 16, 24))
    assert native.dtype == np.int16 and native[0, 0].tolist() == list(range(24))


@pytest.mark.parametrize("model", [{"num_layers": 2}, WINDOWED], ids=["full", "shifted windows"])
def test_expert_maps_are_the_routers_own_choices(model):
    """For every voxel: the most central of its windows, the token of its cell, and numpy's view of the router there."""
    run = make_run(top_k=3, residual_experts="window" in model, **model)
    for gate in check_experts(run.net).values():
        gate.e_score_correction_bias.copy_(torch.tensor([0.3, -0.3, 0.0, 0.1]))  # chooses, but does not weigh
    sample = make_sample((16, 18, 16))
    scene = set_scene(run, sample, overlap=0.5)
    found = visits(scene)
    assert len(scene.corners) == 2 and list(found.choices) == list(range(len(run.net.encoder.blocks)))
    routes = []
    for number in range(2):
        rows = _rows_that_reach_the_routers(scene, number)
        chosen = {}
        for layer, gate in check_experts(run.net).items():
            scores = np.exp(rows[layer] @ gate.weight.detach().double().numpy().T)
            scores /= scores.sum(-1, keepdims=True)
            best = np.argsort(-(scores + gate.e_score_correction_bias.double().numpy()), axis=1)[:, :3]
            order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1)
            chosen[layer] = np.take_along_axis(best, order, 1).reshape(4, 4, 4, 3)
        routes.append(chosen)
    first = expert_map(run, sample, overlap=0.5)
    for layer, choices in found.choices.items():
        assert choices.shape == (3, 16, 18, 16) and np.array_equal(choices[0], first[layer])
        expected = np.empty_like(choices)
        for d, h, w in np.ndindex(16, 18, 16):
            number = 0 if h < 9 else 1  # windows of 16 at 0 and 2: h is nearer to the centre of the first below 9
            row = h - scene.corners[number][1]
            expected[:, d, h, w] = routes[number][layer][d // 4, row // 4, w // 4]
        assert np.array_equal(choices, expected)
        assert len(np.unique(choices[0])) > 1
        counts = sum(np.bincount(route[layer].ravel(), minlength=4) for route in routes)
        assert found.load[layer].tolist() == counts.tolist() and counts.sum() == 2 * 64 * 3


def _rows_that_reach_the_routers(scene, number):
    """{layer: (N, D) float64} of one window."""
    rows = {}
    handles = [
        gate.register_forward_pre_hook(lambda module, args, layer=layer: rows.__setitem__(layer, args[0].double().numpy()))
        for layer, gate in check_experts(scene.net).items()
    ]
    with torch.inference_mode():
        scene.look(scene.window(scene.padded, number))
    for handle in handles:
        handle.remove()
    return rows


def test_what_has_no_experts_or_several_networks_is_refused():
    with pytest.raises(InputError, match="no mixture of experts"):
        expert_map(make_run(use_moe=False), make_sample((16, 16, 16)))
    run = make_run()
    several = Run(nn.Identity(), run.config, run.channels, run.device, num_members=3)
    with pytest.raises(InputError, match="3 networks or flips are averaged here"):
        expert_map(several, make_sample((16, 16, 16)))
