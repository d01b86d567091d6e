"""Slabs against the whole map: the same network, the same volume, and memory that does not follow the volume."""

import pytest
import torch
import torch.nn.functional as F

from mri_ds.config import TaskConfig, load_config
from mri_ds.mri_network import BaseMRINet
from mri_ds.nn import slabs
from mri_ds.nn.slabs import Planes, convolve, upsampled
from mri_ds.training.plan.trace import _Watch

TASKS = {
    "tissue": TaskConfig(kind="segmentation", classes=["background", "grey", "white"], class_prior=[0.7, 0.2, 0.1]),
    "age": TaskConfig(kind="regression", unit="years", mean=50.0, std=20.0),
}


@pytest.fixture
def small_slabs(monkeypatch):
    """Everything is large, and a slab is a few planes."""
    monkeypatch.setattr(slabs, "LARGE", 0)
    monkeypatch.setattr(slabs, "SLAB", 20_000)


@pytest.mark.parametrize("kernel", [(1, 1, 1), (3, 3, 3), (4, 8, 8)])
@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2), (3, 1, 2)])
@torch.no_grad()
def test_a_convolution_in_slabs_is_that_of_the_whole(kernel, stride, small_slabs):
    torch.manual_seed(0)
    x, weight, bias = (
        torch.randn(2, 3, 23, 16, 17, dtype=torch.float64),
        torch.randn(4, 3, *kernel).double(),
        torch.randn(4).double(),
    )
    pad = (1, 2, 0, 1, 3, 1)
    expected = F.conv3d(F.pad(x, pad), weight, bias, stride, (1, 0, 1))
    read = []
    made = Planes(x.shape, lambda a, b: read.append((a, b)) or x[:, :, a:b])
    for source in (x, made):
        got = convolve(source, weight, bias, stride=stride, padding=(1, 0, 1), pad=pad)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert len(read) > 2 and min(a for a, _ in read) == 0 and max(b for _, b in read) == 23


@pytest.mark.parametrize("times", [1, 2, 4])
def test_upsampled_planes_are_those_of_the_whole(times):
    x = torch.randn(1, 2, 5, 3, 4)
    shape = (5 * times, 6, 8)
    whole = F.interpolate(x, size=shape, mode="trilinear", align_corners=False)
    for a in range(shape[0]):
        for b in range(a + 1, shape[0] + 1):
            assert torch.equal(upsampled(x, shape, a, b), whole[:, :, a:b])


@pytest.mark.parametrize("stride", [(4, 4, 4), (8, 8, 8), (4, 8, 8)])
@torch.no_grad()
def test_a_large_volume_in_slabs_is_predicted_as_the_whole(stride, monkeypatch):
    """Odd sizes, an odd token grid, thick slices, two channels; every stage in slabs."""
    update = {"token_stride": stride, "attention": "windowed", "window": (2, 2, 2), "in_channels": 2, "decoder_layers": 1}
    settings = load_config(scale="tiny").model.model_copy(update=update)
    torch.manual_seed(0)
    net = BaseMRINet(settings, TASKS).double().eval()
    for p in net.parameters():  # no part may hide behind a weight that starts at zero
        p += 0.1 * torch.randn_like(p)
    image, spacing_mm = torch.randn(2, 2, 41, 30, 23, dtype=torch.float64), torch.tensor([[2.0, 1.0, 1.0], [1.0, 0.8, 1.2]])
    whole = net(image, spacing_mm)
    monkeypatch.setattr(slabs, "LARGE", 0)
    monkeypatch.setattr(slabs, "SLAB", 20_000)
    in_slabs = net(image, spacing_mm)
    for task, expected in whole.items():
        torch.testing.assert_close(in_slabs[task], expected, rtol=1e-6, atol=1e-6)
    assert not torch.equal(in_slabs["tissue"], whole["tissue"])  # other sums: it did run in slabs
    half = net.bfloat16()(image.bfloat16(), spacing_mm)
    error = (half["tissue"].double() - whole["tissue"]).abs().max() / whole["tissue"].abs().max()
    assert error < 0.05


@torch.no_grad()
def test_group_normalisation_in_place_where_the_mean_is_far_from_zero(small_slabs):
    from mri_ds.nn.normalization import GroupNormSiLU

    torch.manual_seed(0)
    norm, x = GroupNormSiLU(2, 8), 100 + torch.randn(2, 8, 30, 12, 13)
    for p in norm.parameters():
        p.copy_(torch.randn(8))
    expected = F.silu(F.group_norm(x.double(), 2, norm.weight.double(), norm.bias.double(), norm.eps))
    torch.testing.assert_close(norm(x.clone()).double(), expected, rtol=0, atol=1e-3)  # as PyTorch has it
    torch.testing.assert_close(norm(x, may_overwrite=True).double(), expected, rtol=0, atol=1e-4)


def test_training_and_patches_stay_whole():
    x = torch.empty(1, 1, device="meta").expand(slabs.LARGE, 2)
    assert not slabs.is_large(x.shape)
    with torch.no_grad():
        assert slabs.is_large(x.shape) and not slabs.is_large(x[:, :1].shape)


def peak_bytes(edge):
    """Most that is alive during one pass over edge^3 voxels, without the weights: counted storage by storage, not sampled."""
    settings = load_config(scale="tiny").model.model_copy(update={"attention": "windowed"})
    torch.manual_seed(0)
    net = BaseMRINet(settings, TASKS).bfloat16().eval()
    image = torch.zeros(1, 1, edge, edge, edge, dtype=torch.bfloat16)
    watch = _Watch(ignored=[*net.parameters(), *net.buffers(), image])
    with torch.no_grad(), watch:
        net(image)
    return watch.peak


def test_memory_beside_the_maps_does_not_grow_with_the_volume(monkeypatch):
    """What the maps of the network take by themselves, by hand: of each voxel, in numbers of bfloat16, while logits are made
    skips c + c/2, decoder's features c + c/2, logits K and their coarse part K/8."""
    c, classes = 4, 3
    maps = 2 * (3 * c + 1.125 * classes)
    voxels = 72**3 - 48**3
    whole = (peak_bytes(72) - peak_bytes(48)) / voxels
    monkeypatch.setattr(slabs, "LARGE", 2**16)
    monkeypatch.setattr(slabs, "SLAB", 2**14)
    in_slabs = (peak_bytes(72) - peak_bytes(48)) / voxels
    assert 0.9 * maps < in_slabs < 1.3 * maps, (in_slabs, maps)
    assert whole > 2 * maps, (whole, maps)
