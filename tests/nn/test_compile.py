"""torch.compile takes a block, and the whole network, as one graph, and it computes what it did."""

import copy

import pytest
import torch

from mri_ds.config import TaskConfig
from mri_ds.mri_network import create_sota_net
from mri_ds.nn.transformer import Encoder


def one_graph(module, backend="eager"):
    """Fails where a graph would break. "eager" runs it as it was traced, "aot_eager" traces its backward pass as well."""
    torch._dynamo.reset()
    return torch.compile(module, fullgraph=True, backend=backend)


CASES = [
    ({}, "aot_eager"),
    ({"use_moe": False}, "eager"),
    ({"residual_experts": True}, "eager"),
    ({"window": (2, 2, 2)}, "eager"),
]


@pytest.mark.parametrize(("options", "backend"), CASES)
def test_a_block_is_one_graph_with_the_same_result_and_gradients(options, backend):
    torch.manual_seed(0)
    block = Encoder(16, 2, 2, num_experts=4, expert_hidden=8, top_k=2, **options).blocks[1]  # shifted, where there are windows
    plain, compiled = block, one_graph(copy.deepcopy(block), backend)
    tokens = torch.randn(2, 3 * 4 * 5, 16)
    for net in (plain, compiled):
        out = net(tokens, (3, 4, 5))
        out.square().sum().backward()
    torch.testing.assert_close(out, plain(tokens, (3, 4, 5)), rtol=1e-5, atol=1e-5)
    for a, b in zip(compiled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)


def test_the_network_is_one_graph():
    torch.manual_seed(0)
    tasks = {
        "tissue": TaskConfig(kind="segmentation", classes=["background", "brain"]),
        "age": TaskConfig(kind="regression", unit="years"),
    }
    net = create_sota_net(tasks, scale="tiny").eval()
    image, spacing = torch.randn(1, 1, 16, 16, 16), torch.ones(1, 3)
    expected, found = net(image, spacing), one_graph(net)(image, spacing)
    for name in tasks:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)
