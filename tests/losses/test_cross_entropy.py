"""Voxel cross-entropy by hand, against torch (smoothing, weights, ignored voxels) and MONAI (focal)."""

import pytest
import torch
import torch.nn.functional as F
from monai.losses import FocalLoss

from mri_ds.losses import balanced_weights, cross_entropy_loss


def test_cross_entropy_by_hand():
    # p = 1/2 and 3/4: -log(1/2) = 0.69315, -log(3/4) = 0.28768, mean 0.49041; focal with gamma 1 weighs by 1/2 and 1/4.
    logits = torch.tensor([[[0.0, 0.0], [0.0, 3.0]]]).view(1, 2, 1, 1, 2)
    logits[0, 1, 0, 0, 1] = torch.log(torch.tensor(3.0))
    target = torch.tensor([0, 1]).view(1, 1, 1, 2)
    torch.testing.assert_close(cross_entropy_loss(logits, target), torch.tensor([0.49041]), atol=1e-5, rtol=0)
    expected = torch.tensor([(0.69315 / 2 + 0.28768 / 4) / 2])
    torch.testing.assert_close(cross_entropy_loss(logits, target, gamma=1.0), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("gamma", [1.0, 2.0])
@pytest.mark.parametrize("alpha", [None, 0.25])
def test_focal_equals_monai(volumes, gamma, alpha):
    logits, target = volumes()
    weights = [0.5, 1.0, 2.0, 3.0]
    monai = FocalLoss(use_softmax=True, to_onehot_y=True, gamma=gamma, alpha=alpha, weight=weights, reduction="none")
    expected = monai(logits, target[:, None]).sum(1).flatten(1).mean(1)  # MONAI's own mean also counts the K - 1 zeros of a voxel
    ours = cross_entropy_loss(logits, target, gamma=gamma, alpha=alpha, class_weights=weights)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("ignore_index", [-100, 2, 255])
def test_cross_entropy_equals_torch(volumes, label_smoothing, ignore_index):
    logits, target = volumes()
    target[:, :2] = ignore_index
    given = {"label_smoothing": label_smoothing, "ignore_index": ignore_index}
    expected = torch.stack([F.cross_entropy(x[None], y[None], **given) for x, y in zip(logits, target)])
    torch.testing.assert_close(cross_entropy_loss(logits, target, **given), expected)


def test_alpha_alone_weighs_foreground_against_background(volumes):
    logits, target = volumes()
    expected = F.cross_entropy(logits, target, torch.tensor([0.2, 0.8, 0.8, 0.8]), reduction="none").flatten(1).mean(1)
    torch.testing.assert_close(cross_entropy_loss(logits, target, alpha=0.8), expected)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_gradient_of_a_certain_voxel_is_zero_not_nan(gamma):
    logits = torch.tensor([60.0, -60.0]).view(1, 2, 1, 1, 1).requires_grad_()
    cross_entropy_loss(logits, torch.zeros(1, 1, 1, 1, dtype=torch.int64), gamma=gamma).sum().backward()
    assert logits.grad is not None and torch.equal(logits.grad, torch.zeros_like(logits))


def test_balanced_weights_are_one_on_average_and_even_out_at_power_one():
    prior = [0.9, 0.09, 0.01]
    for power in (0.0, 0.5, 1.0):
        assert sum(p * w for p, w in zip(prior, balanced_weights(prior, power), strict=True)) == pytest.approx(1.0)
    assert balanced_weights(prior, 0.0) == [1.0, 1.0, 1.0]
    assert [p * w for p, w in zip(prior, balanced_weights(prior, 1.0), strict=True)] == pytest.approx([1 / 3] * 3)
    assert max(balanced_weights([1.0, 0.0], 1.0)) <= 1e4  # a class that training never saw weighs no more than the rarest
