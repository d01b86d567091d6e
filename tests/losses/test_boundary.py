"""Boundary voxels against a convolution and scipy's filters, distances against scipy, their loss against MONAI."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.losses import BoundaryLoss
from scipy.ndimage import distance_transform_edt, maximum_filter, minimum_filter

from mri_ds.losses import boundary_loss, boundary_voxels, distance_loss, signed_distance


def found_by_convolution(target, num_classes, ignore_index=None):
    """Voxels in whose 3x3x3 neighbourhood a class fills a part only, by convolving each class's mask with ones."""
    ones = torch.ones(1, 1, 3, 3, 3)
    valid = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    inside = F.conv3d(valid[:, None].float(), ones, padding=1)
    is_boundary = torch.zeros_like(valid)
    for k in range(num_classes):
        count = F.conv3d(((target == k) & valid)[:, None].float(), ones, padding=1)
        is_boundary |= ((count > 0) & (count < inside))[:, 0]
    return is_boundary & valid


@pytest.mark.parametrize("shape", [(6, 7, 8), (1, 5, 1)])
def test_boundary_equals_a_convolution_and_scipy_filters(volumes, shape):
    logits, _ = volumes(shape=shape)
    target = torch.zeros(2, *shape, dtype=torch.int64)
    target[0, : (shape[0] + 1) // 2, 1:4] = 2
    target[1, ..., 1:, :] = 1
    labels = target.numpy()
    size = (1, 3, 3, 3)
    expected = maximum_filter(labels, size, mode="nearest") != minimum_filter(labels, size, mode="nearest")
    np.testing.assert_array_equal(boundary_voxels(target).numpy(), expected)
    assert torch.equal(boundary_voxels(target), found_by_convolution(target, 3))
    per_voxel = F.cross_entropy(logits, target, reduction="none")
    mean = torch.stack([loss[torch.from_numpy(where)].mean() for loss, where in zip(per_voxel, expected)])
    torch.testing.assert_close(boundary_loss(logits, target), mean)


@pytest.mark.parametrize("ignore_index", [0, 1, 255, -1])
def test_ignored_voxels_are_no_boundary_and_make_none(ignore_index):
    target = (torch.rand(2, 6, 7, 8, generator=torch.Generator().manual_seed(0)) > 0.9).long()
    target[:, 3:] = 2
    target[:, :, 5:] = ignore_index
    ours = boundary_voxels(target, ignore_index=ignore_index)
    assert torch.equal(ours, found_by_convolution(target, 3, ignore_index)) and ours.any()


def test_boundary_of_one_class_is_empty_and_costs_nothing(volumes):
    logits, target = volumes(present=1)
    for kind in ("neighbours", "distance"):
        found = logits.clone().requires_grad_()
        loss = boundary_loss(found, target, kind=kind)
        loss.sum().backward()
        assert torch.equal(loss, torch.zeros(2)) and found.grad is not None and not found.grad.any()


def blobs(shape=(14, 9, 11), num_classes=3):
    """Labels with broad regions, so that distances above 1 occur."""
    noise = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(1))
    smooth = F.avg_pool3d(noise, 5, 1, 2, count_include_pad=False)[:, 0]
    return torch.bucketize(smooth, torch.quantile(smooth, torch.linspace(0, 1, num_classes + 1)[1:-1]))


@pytest.mark.parametrize("reach", [3, 100])
def test_signed_distance_equals_scipy(reach):
    mask = blobs()[0] == 2
    outside, inside = distance_transform_edt(~mask.numpy()), distance_transform_edt(mask.numpy())
    expected = np.where(mask, 1 - np.minimum(inside, reach), np.minimum(outside, reach))
    np.testing.assert_allclose(signed_distance(mask[None, None], reach=reach)[0, 0].numpy(), expected, atol=1e-6)
    assert reach == 3 or expected.max() > 3


@pytest.mark.parametrize("include_background", [True, False])
def test_distance_loss_is_monais_less_what_a_perfect_prediction_has_there(volumes, include_background):
    target = blobs()
    logits, _ = volumes(3, shape=tuple(target.shape[1:]))
    truth = F.one_hot(target, 3).movedim(-1, 1).float()
    monai = BoundaryLoss(include_background=include_background, reduction="none")
    expected = (monai(logits.softmax(1), truth) - monai(truth, truth)).mean(1)
    ours = distance_loss(logits, target, reach=100, include_background=include_background)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    assert (ours > 0).all() and (distance_loss(60 * truth, target) < 1e-6).all()


def test_distance_by_hand_and_without_ignored_voxels():
    # Class 1 fills the last two of five voxels. p = 1/2 everywhere: distances 3, 2, 1 outside and 0, -1 inside give
    # (3 + 2 + 1) / 2 + 1 / 2 = 3.5, over 5 voxels 0.7. Without the first voxel: (2 + 1) / 2 + 1 / 2 = 2 over 4.
    logits, target = torch.zeros(1, 2, 1, 1, 5), torch.tensor([0, 0, 0, 1, 1]).view(1, 1, 1, 5)
    torch.testing.assert_close(distance_loss(logits, target), torch.tensor([0.7]))
    target[..., 0] = 9
    torch.testing.assert_close(distance_loss(logits, target, ignore_index=9), torch.tensor([0.5]))
