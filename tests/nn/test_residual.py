"""Residual experts: a learned share of the experts and of one dense network."""

import torch
import torch.nn.functional as F

from mri_ds.config import TaskConfig, load_config
from mri_ds.mri_network import BaseMRINet
from mri_ds.nn.moe import MixtureOfExperts
from mri_ds.nn.residual import ResidualMixture


def layer() -> ResidualMixture:
    torch.manual_seed(0)
    return ResidualMixture(MixtureOfExperts(8, num_experts=4, expert_hidden=16, top_k=2))


def test_is_the_weighted_sum_by_hand():
    net, tokens = layer(), torch.randn(2, 5, 8)
    gate, up = (tokens @ net.dense.gate_up_proj[0].t()).chunk(2, dim=-1)
    dense = (F.silu(gate) * up) @ net.dense.down_proj[0].t()
    share = torch.sigmoid((tokens @ net.coefficient.weight.t() + net.coefficient.bias) @ torch.tensor([1.0, -1.0]))[..., None]
    torch.testing.assert_close(net(tokens), share * net.routed(tokens) + (1 - share) * dense, rtol=1e-5, atol=1e-6)


def test_one_part_alone_when_the_other_has_no_share():
    net, tokens = layer(), torch.randn(1, 7, 8)
    with torch.no_grad():
        net.coefficient.weight.zero_()
        net.coefficient.bias.copy_(torch.tensor([50.0, -50.0]))
    torch.testing.assert_close(net(tokens), net.routed(tokens))


def test_the_network_has_it_when_asked():
    tasks = {"cls": TaskConfig(kind="classification", classes=["a", "b"])}
    nets = [BaseMRINet(load_config(scale="tiny", overrides=sets).model, tasks) for sets in ([], ["model.residual_experts=true"])]
    extra = {name.split(".moe.")[1] for name in nets[1].state_dict().keys() - nets[0].state_dict().keys()}
    assert {"coefficient.weight", "coefficient.bias", "dense.gate_up_proj", "dense.down_proj"} < extra
    image = torch.randn(1, 1, 16, 16, 16)
    nets[1](image)["cls"].sum().backward()
    assert all(p.grad is not None for name, p in nets[1].named_parameters() if ".moe." in name and ".experts." not in name)
