import pytest
import torch

from mri_ds.nn.embedding import OptimizedCubeEmbedding


def embedding(stride=(8, 8, 8), **options):
    torch.manual_seed(0)
    return OptimizedCubeEmbedding(4, 16, stride=stride, **options)


@pytest.mark.parametrize("stride", [(4, 4, 4), (8, 8, 8), (8, 8, 4)])
@pytest.mark.parametrize("cells", [(2, 3, 4), (1, 1, 1), (5, 2, 3)])
def test_one_token_per_stride_and_a_finer_map_of_twice_that_grid(stride, cells):
    half = [n * s // 2 for n, s in zip(cells, stride, strict=True)]
    tokens, grid, fine = embedding(stride)(torch.randn(2, 4, *half))
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
