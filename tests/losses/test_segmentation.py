"""All terms together: their sum, their gradient, extreme inputs, several resolutions."""

import pytest
import torch
import torch.nn.functional as F
from monai.losses import DeepSupervisionLoss, DiceCELoss

from mri_ds.losses import boundary_loss, cross_entropy_loss, deep_segmentation_loss, dice_loss, segmentation_loss, tversky_loss

TERMS = {"dice": 0.7, "cross_entropy": 1.3, "boundary": 0.4, "focal_gamma": 2.0, "label_smoothing": 0.1}
VARIANTS = [
    {},
    TERMS,
    {"dice": 0.0, "cross_entropy": 0.0, "boundary": 1.0},
    {"dice_kind": "generalised", "include_background": True, "focal_alpha": 0.3, "focal_gamma": 1.5},
    {"dice": 0.0, "tversky": 1.0, "tversky_alpha": 0.3, "tversky_beta": 0.7, "class_weights": [0.5, 1.0, 2.0, 3.0]},
    {"boundary": 0.5, "boundary_kind": "distance", "boundary_reach": 3},
    {"tversky": 0.5, "regions": [[1, 2, 3], [2, 3]], "dice_kind": "generalised"},
    {**TERMS, "ignore_index": 1, "regions": [[2], [2, 3]]},
    {**TERMS, "ignore_index": 1, "tversky": 0.3, "boundary_kind": "distance", "class_weights": [0.5, 1.0, 2.0, 3.0]},
]


def test_fused_terms_equal_their_sum(volumes):
    logits, target = volumes(dtype=torch.float64)
    expected = (
        0.7 * dice_loss(logits, target)
        + 0.6 * tversky_loss(logits, target, alpha=0.2, beta=0.9)
        + 1.3 * cross_entropy_loss(logits, target, label_smoothing=0.1, gamma=2.0)
        + 0.4 * boundary_loss(logits, target)
    )
    given = {**TERMS, "tversky": 0.6, "tversky_alpha": 0.2, "tversky_beta": 0.9}
    torch.testing.assert_close(segmentation_loss(logits, target, **given), expected)


def test_defaults_equal_monais_dice_and_cross_entropy(volumes):
    logits, target = volumes()
    monai = DiceCELoss(include_background=False, softmax=True, to_onehot_y=True)
    for b in range(2):
        expected = monai(logits[b : b + 1], target[b : b + 1, None])
        torch.testing.assert_close(segmentation_loss(logits, target)[b], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("terms", VARIANTS)
def test_gradcheck(volumes, terms):
    logits, target = volumes(present=4, shape=(2, 3, 2), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: segmentation_loss(z, target, **terms), logits.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("terms", VARIANTS)
def test_finite_at_certain_logits_and_in_half_precision(volumes, dtype, terms):
    """Surely right, surely wrong; of one class alone, with an absent class, with every voxel ignored where any is."""
    for present, only, sign in [(1, 0, -60.0), (1, 0, 60.0), (3, None, -60.0), (3, None, 60.0), (1, 1, 60.0), (1, 3, -60.0)]:
        _, target = volumes(present=present)
        target = target if only is None else torch.full_like(target, only)
        logits = (sign * F.one_hot(target, 4).movedim(-1, 1)).to(dtype).requires_grad_()
        loss = segmentation_loss(logits, target, **terms)
        loss.sum().backward()
        assert loss.dtype == torch.float32 and loss.isfinite().all()
        assert logits.grad is not None and logits.grad.dtype == dtype and logits.grad.isfinite().all()
        if only == terms.get("ignore_index", -1):
            assert torch.equal(loss, torch.zeros(2)) and not logits.grad.any()


def test_sure_and_right_costs_the_smoothing_alone(volumes):
    _, target = volumes()
    logits = 60.0 * F.one_hot(target, 4).movedim(-1, 1)
    expected = 1.3 * 0.1 * 60 * 3 / 4  # Dice 0 (absent classes score a perfect 1), focal 0
    torch.testing.assert_close(segmentation_loss(logits, target, **TERMS), torch.full((2,), expected), atol=1e-3, rtol=0)


@pytest.mark.parametrize("shape", [(8, 12, 4), (7, 9, 5)])
def test_deep_supervision_equals_monai(volumes, shape):
    logits, target = volumes(shape=shape)
    generator = torch.Generator().manual_seed(1)
    coarser = [torch.randn(2, 4, *[-(-n // step) for n in shape], generator=generator) for step in (2, 4)]
    ours = deep_segmentation_loss(logits, coarser, target)
    monai = DeepSupervisionLoss(DiceCELoss(include_background=False, softmax=True, to_onehot_y=True))
    for b in range(2):
        expected = monai([x[b : b + 1] for x in (logits, *coarser)], target[b : b + 1, None].float())
        torch.testing.assert_close(ours[b], expected, atol=1e-5, rtol=0)
    weighted = deep_segmentation_loss(logits, coarser[:1], target, weights=[0.25, 2.0], dice=0.0)
    fine, half = (cross_entropy_loss(z, y) for z, y in [(logits, target), (coarser[0], _nearest(target, coarser[0]))])
    torch.testing.assert_close(weighted, 0.25 * fine + 2 * half)
    with pytest.raises(ValueError, match="1 deep-supervision weights for 3 resolutions"):
        deep_segmentation_loss(logits, coarser, target, weights=[1.0])


def _nearest(target, like):
    """By indices: voxel j of n stands at (j + 1/2) N / n."""
    for axis, n in zip((1, 2, 3), like.shape[2:]):
        place = ((torch.arange(n) + 0.5) * target.shape[axis] / n).floor().long()
        target = target.index_select(axis, place)
    return target
