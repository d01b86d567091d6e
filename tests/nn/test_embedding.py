import pytest
import torch

from mri_ds.nn.embedding import OptimizedCubeEmbedding


def embedding(stride=(8, 8, 8), **options):
    torch.manual_seed(0)
    return OptimizedCubeEmbedding(4, 16, stride=stride, **options)


@pytest.mark.parametrize("stride", [(4, 4, 4), (8, 8, 8), (8, 8, 4)])
@pytest.mark.parametrize("cells", [(2, 3, 4), (1, 1, 1), (5, 2, 3)])
@pytest.mark.parametrize("every_token", [False, True])
def test_one_token_per_stride_and_a_finer_map_of_twice_that_grid(stride, cells, every_token):
    half = [n * s // 2 for n, s in zip(cells, stride, strict=True)]
    tokens, grid, fine = embedding(stride, every_token=every_token)(torch.randn(2, 4, *half))
    assert grid == cells
    assert tokens.shape == (2, cells[0] * cells[1] * cells[2], 16)
    assert fine.shape == (2, 4, *(2 * n for n in cells))


def test_shifting_the_input_by_two_strides_shifts_the_interior_tokens_by_two():
    net = embedding((4, 4, 4))
    torch.nn.init.zeros_(net.positions)  # positions are what tells places apart
    image = torch.randn(1, 4, 32, 6, 6)  # half-resolution voxels: 16 x 3 x 3 tokens
    shifted = image.roll(4, dims=2)  # two strides, which is one stride of the double cubes
    a, b = (net(x)[0].view(16, 3, 3, 16) for x in (image, shifted))
    torch.testing.assert_close(a[4:10], b[6:12], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride", [(4, 4, 4), (4, 8, 8)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_shifting_the_input_by_one_stride_shifts_the_interior_tokens_by_one(stride, axis):
    """All three scales, the largest cubes at every token."""
    net = embedding(stride, every_token=True)
    torch.nn.init.zeros_(net.positions)
    cells = [3, 3, 3]
    cells[axis] = 12
    image = torch.randn(1, 4, *(n * s // 2 for n, s in zip(cells, stride)))  # half-resolution voxels
    shifted = image.roll(stride[axis] // 2, dims=2 + axis)
    a, b = (net(x)[0].view(*cells, 16).movedim(axis, 0) for x in (image, shifted))
    torch.testing.assert_close(a[3:8], b[4:9], rtol=1e-5, atol=1e-5)
    assert (a[3:8] - a[4:9]).abs().max() > 0.1  # neighbours differ


@pytest.mark.parametrize("scale", ["cube", "fine", "coarse"])
def test_each_scale_is_a_convolution_of_its_own_length_and_stride(scale):
    """Cubes of 16, 8 and 32 voxels with strides 8, 4 and 16: each twice its stride, so that neighbours overlap by half."""
    net = embedding((8, 8, 8), every_token=False)
    voxels = {"cube": (16, 8), "fine": (8, 4), "coarse": (32, 16)}[scale]  # (length, stride) in voxels, of which 2 make a feature
    sampled = 2 if scale == "coarse" else 1
    conv = getattr(net, scale)
    assert tuple(n * 2 * sampled for n in conv.length) == (voxels[0],) * 3
    assert tuple(n * 2 * sampled for n in conv.conv.stride) == (voxels[1],) * 3
    image = torch.randn(1, 4, 64 // sampled, 4, 4)  # 128 voxels along D
    moved = image.roll(conv.conv.stride[0], dims=2)
    a, b = (conv(x)[0, :, :, 0, 0] for x in (image, moved))
    torch.testing.assert_close(a[:, 2:-2], b[:, 3:-1], rtol=1e-5, atol=1e-5)


def test_positions_reach_any_grid_and_stay_smooth():
    """Learned on 6^3: on that grid they are themselves, on a finer one linear between; a ramp stays a ramp."""
    net = embedding((4, 4, 4), multi_scale=False)
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
        net.norm.weight.fill_(1)
        ramp = torch.arange(6.0)[:, None, None].expand(6, 6, 6)
        net.positions[0, 0], net.positions[0, 1] = ramp, 7.0
    seen = []
    net.norm.register_forward_pre_hook(lambda module, args: seen.append(args[0][0, :, 0]))
    for cells in ((6, 6, 6), (12, 6, 3), (1, 9, 2)):
        net(torch.zeros(1, 4, *(2 * n for n in cells)))
    assert torch.equal(seen[0].view(6, 6, 6), ramp)
    along = seen[1].view(12, 6, 3)[:, 0, 0]
    torch.testing.assert_close(along[1:-1], torch.arange(10) / 2 + 0.25)  # half steps between the ends
    torch.testing.assert_close(seen[2], torch.full((18,), 2.5))  # one cell stands in the middle


def test_every_voxel_reaches_a_token_and_cubes_overlap():
    """The gradient of one interior token reaches exactly its double cube: 4 strides of voxels along each axis."""
    net = embedding((4, 4, 4), multi_scale=False)
    image = torch.randn(1, 4, 16, 6, 6, requires_grad=True)
    net.cube(image)[0, :, 4, 1, 1].sum().backward()
    reached = image.grad[0].abs().sum(dim=(0, 2, 3)).nonzero().flatten()
    assert reached.tolist() == [7, 8, 9, 10]  # 2 strides of 2 half-resolution voxels, centred on token 4 (voxels 8 and 9)


def test_refuses_a_stride_that_has_no_half_cube():
    with pytest.raises(ValueError, match="multiple of 4"):
        embedding((6, 6, 6))
