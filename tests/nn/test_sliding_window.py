"""The sliding window: MONAI as the oracle, and the properties that any blending must have."""

import pytest
import torch
import torch.nn.functional as F
from monai.inferers import sliding_window_inference

from mri_ds.nn.sliding_window import gaussian_weight, sliding_window, window_corners


def blur(x: torch.Tensor) -> torch.Tensor:
    """A network whose output depends on the window's border, so that blending shows: (B, C, ...) -> (B, 2C, ...)."""
    smooth = F.avg_pool3d(x, kernel_size=3, stride=1, padding=1)
    return torch.cat([smooth, x - x.mean(dim=(2, 3, 4), keepdim=True)], dim=1)


@pytest.mark.parametrize("shape", [(16, 12, 8), (21, 12, 9), (5, 30, 8), (3, 4, 5), (17, 13, 11)])
@pytest.mark.parametrize("overlap", [0.5, 0.25, 0.0])
def test_equals_monai(shape, overlap):
    image = torch.randn(1, 2, *shape, generator=torch.Generator().manual_seed(0))
    patch = (8, 12, 8)
    ours = sliding_window(lambda x: {"y": blur(x)}, image, patch=patch, overlap=overlap, window_batch=3)["y"]
    oracle = sliding_window_inference(image, patch, 4, blur, overlap=overlap, mode="gaussian", sigma_scale=0.125)
    assert ours.shape == (1, 4, *shape)
    assert (ours - oracle).abs().max() < 1e-5


def test_a_volume_that_fits_is_one_call_on_the_centred_volume():
    seen = []

    def fn(x):
        seen.append(x)
        return {"y": 3 * x}

    image = torch.rand(1, 1, 4, 6, 5) + 1
    out = sliding_window(fn, image, patch=(8, 6, 6), pad_value=-7.0)["y"]
    assert [tuple(x.shape) for x in seen] == [(1, 1, 8, 6, 6)]
    assert torch.equal(seen[0][0, 0, 2:6, :, :5], image[0, 0])  # 4 missing planes: two on each side; 1 missing: after
    assert (seen[0][0, 0, [0, 1, 6, 7]] == -7).all() and (seen[0][..., 5] == -7).all()
    torch.testing.assert_close(out, 3 * image)


def test_vectors_are_averaged_over_windows():
    # two windows on an axis of 6 with patch 4: planes 0-3 and 2-5, of means 1.5 and 3.5; their mean is 2.5
    image = torch.arange(6.0).reshape(1, 1, 6, 1, 1).expand(1, 1, 6, 4, 4)
    out = sliding_window(lambda x: {"class": x.mean(dim=(2, 3, 4)), "age": x.mean(dim=(1, 2, 3, 4))}, image, patch=(4, 4, 4))
    torch.testing.assert_close(out["class"], torch.tensor([[2.5]]))
    torch.testing.assert_close(out["age"], torch.tensor([2.5]))


def test_blend_worked_by_hand():
    # windows at planes 0-3 and 2-5 that answer 0 and 1; sigma 0.5, so the weights on a window's four planes are
    # exp(-4.5), exp(-0.5), exp(-0.5), exp(-4.5): plane 2 is w2 of the first and w0 of the second, a share of
    # exp(-4.5) / (exp(-4.5) + exp(-0.5)) = 1 / (1 + exp(4)) = 0.01799 for the second window
    answers = iter([0.0, 1.0])
    out = sliding_window(lambda x: {"y": torch.full_like(x, next(answers))}, torch.rand(1, 1, 6, 4, 4), patch=(4, 4, 4))["y"]
    torch.testing.assert_close(out[0, 0, :, 1, 1], torch.tensor([0, 0, 0.0179862, 0.9820138, 1, 1]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("window_batch", [1, 2, 5, 100])
def test_window_batch_limits_the_call_and_not_the_result(window_batch):
    image = torch.randn(1, 1, 13, 9, 8, generator=torch.Generator().manual_seed(1))
    sizes = []

    def fn(x):
        sizes.append(len(x))
        return {"y": blur(x), "v": x.amax(dim=(2, 3, 4))}

    out = sliding_window(fn, image, patch=(8, 4, 8), window_batch=window_batch)
    reference = sliding_window(fn, image, patch=(8, 4, 8), window_batch=1)
    assert sizes[0] == min(window_batch, len(window_corners((13, 9, 8), (8, 4, 8), 0.5)))
    for name in out:
        torch.testing.assert_close(out[name], reference[name], atol=1e-6, rtol=0)


def test_is_deterministic_and_blends_half_precision_in_float32():
    image = torch.randn(1, 1, 11, 9, 8)
    first = sliding_window(lambda x: {"y": blur(x).bfloat16()}, image, patch=(8, 8, 8))["y"]
    again = sliding_window(lambda x: {"y": blur(x).bfloat16()}, image, patch=(8, 8, 8))["y"]
    assert first.dtype == torch.float32 and torch.equal(first, again)


def test_corners_cover_every_voxel_and_stay_inside():
    for length in range(5, 40):
        covered = torch.zeros(length)
        for (corner,) in {(c[0],) for c in window_corners((length, 5, 5), (5, 5, 5), 0.5)}:
            assert 0 <= corner <= length - 5
            covered[corner : corner + 5] = 1
        assert covered.all()


def test_weight_has_sigma_an_eighth_of_the_patch():
    weight = gaussian_weight((17, 9, 9))
    assert weight[8, 4, 4] == 1 and weight.min() == pytest.approx(1e-3)
    torch.testing.assert_close(weight[10, 4, 4], torch.exp(torch.tensor(-4 / (2 * (17 / 8) ** 2))))


@pytest.mark.parametrize(("shape", "overlap"), [((2, 1, 8, 8, 8), 0.5), ((1, 8, 8, 8), 0.5), ((1, 1, 8, 8, 8), 1)])
def test_wrong_arguments_are_named(shape, overlap):
    with pytest.raises(ValueError, match="give"):
        sliding_window(lambda x: {"y": x}, torch.zeros(shape), patch=(4, 4, 4), overlap=overlap)
