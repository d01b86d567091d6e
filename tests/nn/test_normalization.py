"""GroupNormSiLU against PyTorch's own two steps in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mri_ds.nn.normalization import GroupNormSiLU, _GroupNormSiLU

SHAPES = [(2, 8, 8, 6, 10), (1, 32, 4, 4, 4), (3, 4, 5, 3, 7), (2, 24, 2, 2, 3)]  # odd voxel counts, few channels, several groups


def norm_of(channels: int) -> GroupNormSiLU:
    norm = GroupNormSiLU(max(1, channels // 8), channels)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.uniform_(-1, 1)
    return norm


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.detach().double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.bfloat16, 0.02)])
def test_equals_group_norm_then_silu_in_float64(shape, memory_format, dtype, tolerance):
    torch.manual_seed(0)
    norm = norm_of(shape[1])
    x = (torch.randn(shape) + 0.7).to(dtype).contiguous(memory_format=memory_format)
    upstream = torch.randn(shape).to(dtype)
    ours = [t.detach().to(dtype).requires_grad_() for t in (x, norm.weight, norm.bias)]
    theirs = [t.detach().double().requires_grad_() for t in ours]

    got = _GroupNormSiLU.apply(*ours, norm.num_groups, norm.eps)
    got.backward(upstream)
    expected = F.silu(F.group_norm(theirs[0], norm.num_groups, theirs[1], theirs[2], norm.eps))
    expected.backward(upstream.double())

    assert relative_error(got, expected) < tolerance
    for mine, reference in zip(ours, theirs):
        assert relative_error(mine.grad, reference.grad) < tolerance


@pytest.mark.parametrize("value", [3.0, -1.7, 250.0])
def test_a_constant_map_becomes_the_bias(value):
    norm = norm_of(8).bfloat16()
    with torch.no_grad():
        out = norm(torch.full((1, 8, 5, 12, 12), value, dtype=torch.bfloat16))
    expected = F.silu(norm.bias)[None, :, None, None, None].expand_as(out)
    torch.testing.assert_close(out, expected, atol=0.05, rtol=0)


def test_a_mean_far_larger_than_the_deviation_costs_no_precision():
    """Channels about 40 with deviations of 1: a x + c alone would lose most of bfloat16's eight bits."""
    torch.manual_seed(0)
    norm = norm_of(8)
    x = (40 + torch.randn(2, 8, 6, 6, 6)).bfloat16()
    expected = F.silu(F.group_norm(x.double(), 1, norm.weight.double(), norm.bias.double(), norm.eps))
    assert relative_error(_GroupNormSiLU.apply(x, norm.weight, norm.bias, 1, norm.eps), expected) < 0.01


def test_the_module_chooses_the_fast_path_by_itself_and_has_the_weights_of_group_norm():
    norm = norm_of(8)
    x = torch.randn(2, 8, 4, 4, 4)
    expected = F.silu(nn.functional.group_norm(x, 1, norm.weight, norm.bias, norm.eps))
    torch.testing.assert_close(norm(x), expected)
    torch.testing.assert_close(norm.bfloat16()(x.bfloat16()).float(), expected, atol=0.05, rtol=0.05)
    assert set(norm.state_dict()) == set(nn.GroupNorm(1, 8).state_dict())
