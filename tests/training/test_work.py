"""FLOPs by hand, and what a machine can do."""

import pytest
import torch
from torch import nn
from torch.utils.benchmark import Timer

from mri_ds.nn.moe import MixtureOfExperts
from mri_ds.training.devices import TABLE
from mri_ds.training.window import token_grid
from mri_ds.training.work import FlopMeter, measured_flops, peak_flops


def test_a_convolution_and_a_product_by_hand():
    """Conv3d of 2 -> 4 channels, kernel 3, on 8^3 voxels; then a matrix of 4 x 5 on each voxel. 2 FLOPs a multiply-add."""
    conv, linear = nn.Conv3d(2, 4, 3, padding=1), nn.Linear(4, 5)
    image = torch.randn(3, 2, 8, 8, 8)
    forward = 2 * 3 * 8**3 * (2 * 4 * 3**3 + 4 * 5)
    out, flops = FlopMeter().forward(lambda: linear(conv(image).flatten(2).transpose(1, 2)), tuple(image.shape))
    assert out.shape == (3, 512, 5) and flops == 3 * forward


def test_experts_by_hand():
    """Every token visits top_k experts of three matrices D x F; the router is D x E. Sums are not counted, products are."""
    tokens, dim, hidden, experts, top_k = 20, 16, 8, 4, 2
    moe = MixtureOfExperts(dim, num_experts=experts, expert_hidden=hidden, top_k=top_k)
    _, flops = FlopMeter().forward(lambda: moe(torch.randn(1, tokens, dim)), (1,))
    assert flops == 3 * 2 * tokens * (dim * experts + top_k * 3 * dim * hidden)


def test_a_shape_is_counted_once_and_then_remembered():
    meter, calls = FlopMeter(), []

    def run(size):
        calls.append(size)
        return torch.ones(size, 4) @ torch.ones(4, 6)

    counts = [meter.forward(lambda n=n: run(n), (n,))[1] for n in (5, 7, 5)]
    assert counts == [3 * 2 * 5 * 24, 3 * 2 * 7 * 24, 3 * 2 * 5 * 24] and calls == [5, 7, 5] and len(meter.by_shape) == 2


def test_a_cpu_is_measured():
    """The same products, timed here as a person would, cannot be much faster than what was found."""
    cpu = torch.device("cpu")
    found = measured_flops(cpu, torch.float32)
    timer = Timer("a @ b", globals={"a": torch.randn(1024, 1024), "b": torch.randn(1024, 1024)})
    assert 0.2 < found * timer.timeit(5).median / (2 * 1024**3) < 20  # the machine may be busy with other things
    assert 1e8 < peak_flops(cpu, torch.float32) < 1e14


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
    ],
)
def test_gpus_are_known_by_name(monkeypatch, name, expected):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda", 0), torch.bfloat16) == expected
    assert all(row.fp32 < 1e14 for row in TABLE.values())


def test_a_patch_is_padded_to_whole_tokens():
    assert token_grid((16, 17, 24), (8, 8, 8)) == (2, 3, 3)
