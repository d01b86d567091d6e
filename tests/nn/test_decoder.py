"""The way back to full resolution: its grids, its two kinds of layers, and what each skip is for."""

import pytest
import torch
from torch import nn

from mri_ds.nn.attention import SparseAttention
from mri_ds.nn.convolution import ConvBlock
from mri_ds.nn.decoder import Decoder

GRID, SIZE = (2, 1, 3), (16, 8, 24)


def joints(stride=(8, 8, 8), batch=1):
    """Tokens, grid, finer map, half- and full-resolution skips of a volume of 2 x 1 x 3 strides; token width 16, stem width 4."""
    torch.manual_seed(0)
    full = [n * s for n, s in zip(GRID, stride)]
    tokens, fine = torch.randn(batch, 6, 16), torch.randn(batch, 4, *(2 * n for n in GRID))
    return tokens, GRID, fine, torch.randn(batch, 16, *(n // 2 for n in full)), torch.randn(batch, 4, *full)


@pytest.mark.parametrize("num_layers", [0, 2])
@pytest.mark.parametrize("stride", [(8, 8, 8), (4, 8, 8), (4, 4, 4)])
def test_climbs_to_half_and_to_full_resolution(num_layers, stride):
    tokens, grid, fine, half, full = joints(stride, batch=2)
    features, at_half = Decoder(16, 4, num_layers=num_layers)(tokens, grid, fine, half, full)
    assert features.shape == full.shape and at_half.shape == half.shape


def test_is_a_hybrid_of_convolutions_and_transformer_blocks():
    """Blocks come in after the finer map, shifted in turn; without them nothing is left of them."""
    net = Decoder(16, 4, num_layers=2, window=(2, 2, 2))
    kinds = [type(m) for m in net.modules() if isinstance(m, ConvBlock | SparseAttention)]
    assert kinds.count(ConvBlock) == 3 and kinds.count(SparseAttention) == 2
    assert [block.attention.shift for block in net.blocks] == [False, True]
    plain = Decoder(16, 4)
    own = {k: v for k, v in net.state_dict().items() if not k.startswith("blocks.")}
    plain.load_state_dict(own, strict=True)
    for block in net.blocks:
        nn.init.zeros_(block.scale1.gain)
        nn.init.zeros_(block.scale2.gain)
    for a, b in zip(net(*joints()), plain(*joints())):
        assert torch.equal(a, b)


@pytest.mark.parametrize("part", ["tokens", "fine", "half", "full"])
def test_every_skip_is_read_and_every_weight_learns(part):
    net, args = Decoder(16, 4, num_layers=1), list(joints())
    place = {"tokens": 0, "fine": 2, "half": 3, "full": 4}[part]
    args[place].requires_grad_()
    features, at_half = net(*args)
    (features.square().sum() + at_half.square().sum()).backward()
    assert args[place].grad.abs().sum() > 0
    # what is added to all keys of a window alike cancels in its softmax
    still = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []
