"""Blur, low resolution, ringing and ghosts as matrices, against scipy's filters and transforms, TorchIO and torch's pooling."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.fft import dctn, idctn
from scipy.ndimage import fourier_gaussian, gaussian_filter

from mri_ds.augment.frame import Frame
from mri_ds.augment.lines import (
    along_lines,
    blur_lines,
    draw_blur,
    draw_ghosting,
    draw_gibbs,
    draw_low_resolution,
    frequency_filter,
    ghosting_lines,
    gibbs_lines,
    low_resolution_lines,
    one_after_another,
)

SHAPE = (12, 10, 9)


def image(channels: int = 2) -> torch.Tensor:
    return torch.randn(channels, *SHAPE, generator=torch.Generator().manual_seed(0))


def test_lines_along_each_axis_by_einsum():
    rng = np.random.default_rng(0)
    matrices = [rng.normal(size=(2, n, n)) for n in SHAPE]
    expected = torch.einsum("cdhw,cxd,cyh,czw->cxyz", image().double(), *map(torch.from_numpy, matrices))
    assert torch.allclose(along_lines(image(), matrices).double(), expected, rtol=1e-4, atol=1e-3)
    only = along_lines(image(), [None, matrices[1], None]).double()
    assert torch.allclose(only, torch.einsum("cdhw,cyh->cdyw", image().double(), torch.from_numpy(matrices[1])), atol=1e-4)


def test_one_after_another_is_the_same_as_in_turns():
    first, second = blur_lines(SHAPE, np.full((2, 3), 0.8)), ghosting_lines(SHAPE, np.array([1, 3, 0.5]))
    both = along_lines(image(), one_after_another(first, second))
    assert torch.allclose(both, along_lines(along_lines(image(), first), second), atol=1e-5)


def test_blur_is_scipys_gaussian_in_the_frequencies_of_a_mirrored_image():
    sigma = np.array([[0.7, 1.5, 0.0], [0.3, 2.5, 1.0]])
    blurred = along_lines(image(), blur_lines(SHAPE, sigma)).numpy()
    for channel in range(2):
        mirrored = np.pad(image()[channel].double().numpy(), [(0, n) for n in SHAPE], mode="symmetric")
        expected = np.fft.ifftn(fourier_gaussian(np.fft.fftn(mirrored), sigma[channel])).real
        assert np.allclose(blurred[channel], expected[tuple(slice(n) for n in SHAPE)], atol=1e-5)
    wide = gaussian_filter(image()[1].double().numpy(), sigma=(0, 2.5, 0), mode="reflect", truncate=6)
    assert np.allclose(along_lines(image(), blur_lines(SHAPE, np.array([[0, 2.5, 0]] * 2)))[1].numpy(), wide, atol=1e-3)


def test_gibbs_cuts_the_cosine_transform():
    """Half of 12 is 6 cosines, 0.31 of 10 is 3, all of 9."""
    ringing = along_lines(image(), gibbs_lines(SHAPE, np.array([0.5, 0.31, 1.0]))).numpy()
    for channel in range(2):
        spectrum = dctn(image()[channel].double().numpy(), norm="ortho")
        spectrum[6:], spectrum[:, 3:] = 0, 0
        assert np.allclose(ringing[channel], idctn(spectrum, norm="ortho"), atol=1e-5)


def test_gibbs_overshoots_an_edge_by_nine_percent_and_leaves_a_constant_alone():
    step = torch.zeros(1, 128, 1, 1)
    step[:, 64:] = 1
    ringing = along_lines(step, gibbs_lines((128, 1, 1), np.array([0.25, 1, 1])))
    assert ringing.max().item() == pytest.approx(1.0895, abs=0.01)  # the Wilbraham-Gibbs constant
    constant = torch.full((1, 128, 1, 1), 3.0)
    assert torch.allclose(along_lines(constant, gibbs_lines((128, 1, 1), np.array([0.25, 1, 1]))), constant, atol=1e-5)


@pytest.mark.parametrize("factor", [1, 2, 3, 6])
def test_low_resolution_is_mean_pooling_and_linear_upsampling(factor):
    low = along_lines(image(), low_resolution_lines(SHAPE, np.array([factor, 1, 1])))
    pooled = F.avg_pool3d(image()[None], (factor, 1, 1))
    expected = F.interpolate(pooled, size=SHAPE, mode="trilinear", align_corners=False)[0]
    assert torch.allclose(low, expected, atol=1e-5)


def test_a_voxel_count_that_does_not_divide_keeps_the_mean_of_what_each_covers():
    """Nine voxels in two parts of 4.5: the middle one counts half in each; between the centres at 1.75 and 6.25 it is linear."""
    line = torch.arange(9.0).view(1, 1, 1, 9)
    low = along_lines(line, low_resolution_lines((1, 1, 9), np.array([1, 1, 4.5]))).flatten().tolist()
    left, right = (0 + 1 + 2 + 3 + 4 / 2) / 4.5, (4 / 2 + 5 + 6 + 7 + 8) / 4.5
    assert low[0] == pytest.approx(left) and low[8] == pytest.approx(right) and low[4] == pytest.approx((left + right) / 2)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("ghosts", [2, 3, 5])
def test_ghosting_agrees_with_torchio(axis, ghosts):
    torchio = pytest.importorskip("torchio", reason="TorchIO is not installed")
    subject = torchio.Subject(scan=torchio.ScalarImage(tensor=image()))
    expected = torchio.Ghosting(num_ghosts=ghosts, axis=axis, intensity=0.6, restore=None)(subject)
    ours = along_lines(image(), ghosting_lines(SHAPE, np.array([axis, ghosts, 0.6])))
    assert torch.allclose(ours, expected["scan"].data.float(), atol=1e-5)


def test_a_frequency_filter_of_ones_is_the_identity_and_of_the_centre_alone_the_mean():
    assert np.allclose(frequency_filter(np.ones(7)), np.eye(7))
    for n in (7, 8):
        assert np.allclose(frequency_filter(np.arange(n) == n // 2), 1 / n)


def test_strength_zero_is_the_identity():
    rng, frame = np.random.default_rng(0), Frame(SHAPE, (1.0, 2.0, 3.0), 2)
    for draw, build in [
        (draw_blur, blur_lines),
        (draw_low_resolution, low_resolution_lines),
        (draw_gibbs, gibbs_lines),
        (draw_ghosting, ghosting_lines),
    ]:
        assert torch.allclose(along_lines(image(), build(SHAPE, *draw(rng, frame, 0.0))), image(), atol=1e-5), draw.__name__


def test_drawn_dice_lie_within_their_strength():
    rng, frame = np.random.default_rng(0), Frame(SHAPE, (1.0, 2.0, 4.0), 2)
    blurs = np.stack([draw_blur(rng, frame, 2.0)[0] for _ in range(500)])  # in voxels
    assert blurs.shape == (500, 2, 3) and np.allclose(blurs.max(axis=(0, 1)), [2, 1, 0.5], rtol=0.05) and blurs.min() >= 0
    factors = np.stack([draw_low_resolution(rng, frame, 1.5)[0] for _ in range(500)])
    assert factors.min() >= 1 and 2.4 < factors.max() <= 2.5
    kept = np.stack([draw_gibbs(rng, frame, 0.4)[0] for _ in range(500)])
    assert 0.6 <= kept.min() < 0.62 and kept.max() <= 1
    ghosts = np.stack([draw_ghosting(rng, frame, 0.5)[0] for _ in range(500)])
    assert set(ghosts[:, 0]) == {0, 1, 2} and set(ghosts[:, 1]) == set(range(2, 11)) and 0.48 < ghosts[:, 2].max() <= 0.5
