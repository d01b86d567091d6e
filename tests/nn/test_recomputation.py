"""What runs again in the backward pass: the same loss and gradients at every level, less kept, and the same experts."""

import pytest
import torch

from mri_ds.config import TaskConfig, load_config
from mri_ds.mri_network import BaseMRINet
from mri_ds.nn.recomputation import LEVELS, recomputed
from mri_ds.nn.transformer import Encoder

TASKS = {
    "tissue": TaskConfig(kind="segmentation", classes=["background", "grey", "white"]),
    "age": TaskConfig(kind="regression", unit="years"),
}


class Kept:
    """Bytes of the storages that autograd holds for the backward pass, each once."""

    def __init__(self, ignored):
        self.sizes, self.ignored = {}, {p.untyped_storage().data_ptr() for p in ignored}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda x: x)

    def pack(self, x):
        if (storage := x.untyped_storage()).data_ptr() not in self.ignored:
            self.sizes[storage.data_ptr()] = storage.nbytes()
        return x


@pytest.mark.parametrize("windowed", [False, True])
def test_every_level_has_the_same_loss_and_gradients_and_keeps_less_than_the_one_before(windowed):
    attention = {"attention": "windowed", "window": (2, 2, 2)} if windowed else {}
    settings = load_config(scale="tiny").model.model_copy(update={"drop_path": 0.3, "num_layers": 3, **attention})
    torch.manual_seed(0)
    net = BaseMRINet(settings, TASKS)
    image, kept, losses, gradients = torch.randn(2, 1, 32, 32, 32), [], [], []
    for level in LEVELS:
        net.zero_grad()
        net.encoder.recompute = level
        bytes_kept = Kept(net.parameters())
        torch.manual_seed(1)  # the same branches are dropped
        with bytes_kept.hooks:
            loss = sum(x.square().mean() for x in net(image, torch.ones(2, 3)).values())
        kept.append(sum(bytes_kept.sizes.values()))
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: p.grad for name, p in net.named_parameters()})
    assert LEVELS == ("none", "attention", "block", "full")
    assert kept == sorted(kept, reverse=True) and len(set(kept)) == 4, kept
    for loss, gradient in zip(losses[1:], gradients[1:]):
        torch.testing.assert_close(loss, losses[0], rtol=1e-6, atol=0)
        for name, grad in gradient.items():
            torch.testing.assert_close(grad, gradients[0][name], rtol=1e-6, atol=1e-6, msg=name)


def test_recomputation_cannot_choose_other_experts():
    """The selection bias moves between forward and backward pass, so that the router by itself would choose otherwise."""
    torch.manual_seed(0)
    net = Encoder(16, 2, 2, num_experts=4, expert_hidden=8, top_k=2)
    tokens, found = torch.randn(2, 24, 16), []
    for level in ("none", "block"):
        net.recompute = level
        net.zero_grad()
        loss = net(tokens, (2, 3, 4)).square().sum()
        for block in net.blocks:
            block.moe.gate.e_score_correction_bias.copy_(torch.tensor([0.0, 0.0, 9.0, 9.0]))
        loss.backward(retain_graph=True)
        once = [p.grad.clone() for p in net.parameters()]
        loss.backward()  # the same choices once more
        found.append((once, [p.grad for p in net.parameters()]))
        for block in net.blocks:
            block.moe.gate.e_score_correction_bias.zero_()
    for expected, got in zip(found[0], found[1]):
        for a, b in zip(got, expected):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_autoep_routers_are_pinned_as_well():
    """DeepSpeed's own router, between whose two passes the selection bias moves."""
    from mri_ds.training.distributed import prepare_environment

    prepare_environment()
    from deepspeed.moe.ep_router import TokenChoiceTopKRouter

    torch.manual_seed(0)
    layout = {"num_expert_groups": None, "num_limited_groups": None, "score_func": "softmax", "gate_bias": False}
    router = TokenChoiceTopKRouter(16, num_experts=8, top_k=2, route_norm=True, route_scale=1.0, **layout)
    tokens, found = torch.randn(40, 16), []

    def route(x):
        weights, chosen, _ = router(x, router.e_score_correction_bias)
        found.append(chosen.clone())
        return weights * chosen

    router.e_score_correction_bias = torch.zeros(8)
    out = recomputed(route, tokens.requires_grad_())
    router.e_score_correction_bias[5] = 9.0
    out.square().sum().backward()
    assert len(found) == 2 and torch.equal(found[0], found[1])
    route(tokens)
    assert not torch.equal(found[0], found[2])  # left to itself it would have chosen otherwise
