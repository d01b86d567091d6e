"""Differential features against scipy's Gaussian derivatives, ramps whose slope is known, and rotations of the grid."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from mri_ds.nn.gradients import TRUNCATE, DifferentialFeatures, gaussian_gradient, gaussian_matrices, magnitude

SHAPE = (14, 12, 17)


def scipy_gradient(image, scale_mm, spacing_mm):
    """image (D, H, W) -> (3, D, H, W) per mm, float64."""
    sigma = scale_mm / np.asarray(spacing_mm, dtype=float)
    return np.stack(
        [
            gaussian_filter(image.astype(float), sigma, order=np.eye(3, dtype=int)[axis], mode="nearest", truncate=TRUNCATE)
            / spacing_mm[axis]
            for axis in range(3)
        ]
    )


def test_equals_scipy_up_to_the_border_with_a_spacing_of_its_own_for_every_sample():
    torch.manual_seed(0)
    image, spacing_mm = torch.randn(2, 2, *SHAPE), torch.tensor([[1.0, 1.0, 1.0], [0.5, 1.0, 0.8]])
    for scale_mm in (1.0, 2.0):
        result = torch.stack(gaussian_gradient(image, scale_mm, spacing_mm), dim=2).numpy()
        for b in range(2):
            for c in range(2):
                expected = scipy_gradient(image[b, c].numpy(), scale_mm, spacing_mm[b].tolist())
                np.testing.assert_allclose(result[b, c], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("spacing_mm", [[1.0, 1.0, 1.0], [0.7, 1.2, 4.0]])
def test_ramp_has_its_slope_even_where_slices_are_thicker_than_the_filter(spacing_mm):
    # image = 2 x - 3 y + 0.5 z in mm, so the gradient is (2, -3, 0.5) per mm wherever no filter reaches the border.
    axes = [torch.arange(n, dtype=torch.float64) * step for n, step in zip((31, 29, 27), spacing_mm)]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    image = (2 * x - 3 * y + 0.5 * z)[None, None]
    gradient = torch.stack(gaussian_gradient(image, 1.0, torch.tensor([spacing_mm])))[:, 0, 0, 12:-12, 12:-12, 12:-12]
    expected = torch.tensor([2.0, -3.0, 0.5], dtype=torch.float64).view(3, 1, 1, 1).expand_as(gradient)
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=0)


def test_below_one_voxel_it_is_scipy_times_a_constant():
    # sigma 0.5 voxel: scipy's sampled weights find 0.86 of a ramp's slope; ours are scipy's divided by that.
    _, slope = gaussian_matrices(15, 0.5, torch.tensor([1.0]))
    impulse = np.eye(15)
    theirs = gaussian_filter(impulse, (0.5, 0.0), order=(1, 0), mode="nearest", truncate=TRUNCATE)
    ratio = gaussian_filter(np.arange(31.0), 0.5, order=1, mode="nearest", truncate=TRUNCATE)[15]
    assert 0.85 < ratio < 0.87
    np.testing.assert_allclose(slope[0].numpy(), theirs / ratio, atol=1e-12)


def test_thin_filter_by_hand():
    # sigma far below a voxel: smoothing is the identity, the derivative (next - previous) / 2 voxels of 2 mm.
    smooth, slope = gaussian_matrices(3, 0.01, torch.tensor([2.0]))
    torch.testing.assert_close(smooth[0], torch.eye(3, dtype=torch.float64))
    expected = torch.tensor([[-1.0, 1.0, 0.0], [-1.0, 0.0, 1.0], [0.0, -1.0, 1.0]], dtype=torch.float64) / 4
    torch.testing.assert_close(slope[0], expected)


def test_channels_stand_in_the_stated_order():
    torch.manual_seed(0)
    image = torch.randn(1, 3, *SHAPE)
    module = DifferentialFeatures(3, [1.0, 1.5, 2.0])
    result = module(image, None)
    assert result.shape[1] == module.out_channels == 3 + 9 + 2 * 3 + 2
    torch.testing.assert_close(result[:, :3], image)
    by_axis = gaussian_gradient(image, 1.0)
    for axis in range(3):
        torch.testing.assert_close(result[:, 3 + 3 * axis : 6 + 3 * axis], by_axis[axis])
    for place, scale_mm in ((12, 1.5), (15, 2.0)):
        expected = np.linalg.norm(scipy_gradient(image[0, 1].numpy(), scale_mm, [1.0] * 3), axis=0)
        np.testing.assert_allclose(result[0, place + 1].numpy(), expected, atol=1e-5)
    torch.testing.assert_close(result[:, 18], image[:, 1] - image[:, 0])
    torch.testing.assert_close(result[:, 19], image[:, 2] - image[:, 1])


def test_gradient_of_a_ball_points_outwards_with_the_same_length_in_every_direction():
    """A Gaussian of 4 mm smoothed by one of 2 mm is one of sqrt(20) mm: its gradient by hand, on a grid of uneven steps."""
    spacing_mm = torch.tensor([2.0, 1.0, 0.8], dtype=torch.float64)
    axes = [(torch.arange(n, dtype=torch.float64) - n // 2) * step for n, step in zip((25, 49, 61), spacing_mm)]
    place = torch.stack(torch.meshgrid(*axes, indexing="ij"))  # mm from the centre
    image = torch.exp(-place.square().sum(0) / (2 * 16))
    found = torch.stack(gaussian_gradient(image[None, None], 2.0, spacing_mm[None]))[:, 0, 0]
    expected = -place / 20 * (16 / 20) ** 1.5 * torch.exp(-place.square().sum(0) / (2 * 20))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_any_planes_are_those_of_the_whole():
    torch.manual_seed(0)
    image, spacing_mm = torch.randn(2, 2, 40, 6, 5), torch.tensor([[1.0, 1.0, 1.0], [0.5, 1.0, 0.8]])
    whole = gaussian_gradient(image, 1.0, spacing_mm)
    for a, b in ((0, 1), (0, 40), (17, 23), (39, 40)):
        for part, all_of_it in zip(gaussian_gradient(image, 1.0, spacing_mm, slice(a, b)), whole):
            torch.testing.assert_close(part, all_of_it[:, :, a:b], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("axes", [(2, 3), (3, 4), (2, 4)])
def test_turns_about_every_axis(axes):
    """A quarter turn in the plane of `axes`: what ran along the second runs along the first, backwards."""
    torch.manual_seed(0)
    image, spacing_mm = torch.randn(1, 1, *SHAPE), torch.tensor([[0.8, 1.3, 2.0]])
    first, second = axes
    order = [0, 1, 2]
    order[first - 2], order[second - 2] = second - 2, first - 2
    straight = gaussian_gradient(image, 1.0, spacing_mm)
    turned = gaussian_gradient(image.transpose(*axes).flip(first), 1.0, spacing_mm[:, order])
    for axis in range(3):
        expected = straight[order[axis]].transpose(*axes).flip(first)
        torch.testing.assert_close(turned[axis], -expected if axis == first - 2 else expected, atol=1e-5, rtol=0)


def test_turns_with_the_image():
    torch.manual_seed(0)
    image, spacing_mm = torch.randn(1, 1, *SHAPE), torch.tensor([[0.8, 1.3, 2.0]])
    module = DifferentialFeatures(1)
    straight = module(image, spacing_mm)
    turned = module(image.transpose(2, 3).flip(2), spacing_mm[:, [1, 0, 2]])  # a quarter turn about W
    expected = straight.transpose(3, 2).flip(2)
    torch.testing.assert_close(turned[:, 1], -expected[:, 2], atol=1e-5, rtol=0)  # new D runs against old H
    torch.testing.assert_close(turned[:, 2], expected[:, 1], atol=1e-5, rtol=0)
    torch.testing.assert_close(turned[:, [0, 3, 4]], expected[:, [0, 3, 4]], atol=1e-5, rtol=0)


def test_half_precision_is_computed_in_float32():
    torch.manual_seed(0)
    image, module = torch.randn(1, 2, *SHAPE).bfloat16(), DifferentialFeatures(2)
    result = module(image, None)
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, module(image.float(), None).bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(image.float(), None), module(image.float(), None))
        assert module(image.float(), None).dtype == torch.float32


def test_flat_regions_and_single_slices_have_no_gradient_and_no_nan():
    image = torch.full((1, 1, 1, 5, 6), 3.0, requires_grad=True)
    result = DifferentialFeatures(1)(image, None)
    result.sum().backward()
    torch.testing.assert_close(result[:, 1:], torch.zeros(1, 4, 1, 5, 6), atol=1e-6, rtol=0)
    assert image.grad is not None and image.grad.isfinite().all()


def test_length_of_a_zero_vector_has_a_gradient_of_zero():
    zeros = torch.zeros(3, 4, requires_grad=True)
    magnitude(tuple(zeros)).sum().backward()
    assert zeros.grad is not None and torch.equal(zeros.grad, torch.zeros(3, 4))
    torch.testing.assert_close(magnitude(tuple(torch.tensor([[2.0], [3.0], [6.0]]))), torch.tensor([7.0]))


def test_graph_only_when_the_image_asks_for_it():
    module, image = DifferentialFeatures(2, [1.0, 2.0]), torch.randn(1, 2, 3, 4, 3, dtype=torch.float64)
    assert not list(module.parameters()) and not module(image, None).requires_grad
    assert torch.autograd.gradcheck(module, (image.requires_grad_(), torch.tensor([[1.0, 0.8, 2.0]])))


def test_shapes_come_out_on_the_meta_device():
    assert DifferentialFeatures(2)(torch.empty(1, 2, *SHAPE, device="meta"), None).shape == (1, 11, *SHAPE)


def test_bad_scales_are_named():
    with pytest.raises(ValueError, match="positive scale, got"):
        DifferentialFeatures(1, [1.0, 0.0])
