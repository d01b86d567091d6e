"""Dice, generalised Dice and Tversky by hand and against MONAI; of classes and of regions that overlap."""

import math

import pytest
import torch
from monai.losses import DiceLoss, GeneralizedDiceLoss, TverskyLoss

from mri_ds.losses import dice_loss, tversky_loss

REGIONS = [[1, 2, 3], [2, 3], [3]]  # whole tumour, its core, what enhances


def test_dice_by_hand():
    # Two voxels of classes 0 and 1, p(class 1) = 1/2 and 3/4: overlap 0.75, mass 1.25, volume 1: 1 - 1.5 / 2.25 = 1/3.
    logits = torch.tensor([[[0.0, 0.0], [0.0, math.log(3)]]]).view(1, 2, 1, 1, 2)
    target = torch.tensor([0, 1]).view(1, 1, 1, 2)
    torch.testing.assert_close(dice_loss(logits, target, smooth=0.0), torch.tensor([1 / 3]))
    # Class 0: p = 1/2 and 1/4, overlap 0.5, mass 0.75, volume 1: 1 - 1 / 1.75 = 3/7; the mean of both is 8/21.
    torch.testing.assert_close(dice_loss(logits, target, smooth=0.0, include_background=True), torch.tensor([8 / 21]))
    # Tversky of class 1: 0.5 false positives, 0.25 false negatives: 1 - 0.75 / (0.75 + 0.2 * 0.5 + 0.8 * 0.25) = 2/7.
    torch.testing.assert_close(tversky_loss(logits, target, alpha=0.2, beta=0.8, smooth=0.0), torch.tensor([2 / 7]))


@pytest.mark.parametrize("include_background", [True, False])
@pytest.mark.parametrize("smooth", [1e-5, 1.0])
def test_dice_and_tversky_equal_monai(volumes, include_background, smooth):
    logits, target = volumes()  # the last class is absent
    given = {"include_background": include_background, "softmax": True, "to_onehot_y": True, "reduction": "none"}
    given |= {"smooth_nr": smooth, "smooth_dr": smooth}
    dice = DiceLoss(**given)(logits, target[:, None]).flatten(1).mean(1)
    ours = {"include_background": include_background, "smooth": smooth}
    torch.testing.assert_close(dice_loss(logits, target, **ours), dice, atol=1e-5, rtol=0)
    tversky = TverskyLoss(**given, alpha=0.3, beta=0.7)(logits, target[:, None]).flatten(1).mean(1)
    torch.testing.assert_close(tversky_loss(logits, target, alpha=0.3, beta=0.7, **ours), tversky, atol=1e-5, rtol=0)


@pytest.mark.parametrize("include_background", [True, False])
def test_generalised_dice_equals_monai(volumes, include_background):
    logits, target = volumes()
    first = 0 if include_background else 1
    for b in range(2):  # weights relative to the largest are MONAI's with `smooth` scaled by it
        largest = torch.bincount(target[b].flatten(), minlength=4)[first:3].min().item() ** -2.0
        given = {"include_background": include_background, "softmax": True, "to_onehot_y": True}
        monai = GeneralizedDiceLoss(**given, smooth_nr=1e-3 * largest, smooth_dr=1e-3 * largest)
        ours = dice_loss(
            logits[b : b + 1], target[b : b + 1], kind="generalised", smooth=1e-3, include_background=include_background
        )
        torch.testing.assert_close(ours[0], monai(logits[b : b + 1], target[b : b + 1, None]), atol=1e-5, rtol=0)


def test_generalised_dice_of_large_organs_is_not_lost_in_the_smoothing():
    target = torch.zeros(1, 64, 64, 64, dtype=torch.int64)
    target[:, :32] = 1
    nothing_found = torch.stack([torch.full(target.shape, 9.0), torch.zeros(target.shape)], dim=1)
    assert dice_loss(nothing_found, target, kind="generalised") > 0.999


def test_ignored_voxels_count_as_monai_has_it(volumes):
    logits, target = volumes()
    target[:, 2:4] = 255
    monai = TverskyLoss(softmax=True, to_onehot_y=True, reduction="none", include_background=False, ignore_index=255)
    expected = monai(logits, target[:, None]).flatten(1).mean(1)
    torch.testing.assert_close(tversky_loss(logits, target, ignore_index=255), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(dice_loss(logits, target, ignore_index=255, smooth=2e-5), expected, atol=1e-5, rtol=0)


def test_an_ignored_class_is_no_mask(volumes):
    logits, target = volumes(dtype=torch.float64)
    expected = dice_loss(logits, target.masked_fill(target == 2, -1), ignore_index=-1)  # mean over 1, 2 and 3; 2 is absent
    seen = dice_loss(logits, target, ignore_index=2)
    third = 1 - 1e-5 / (logits.softmax(1)[:, 2] * (target != 2)).flatten(1).sum(1).add(1e-5)
    torch.testing.assert_close(3 * expected, 2 * seen + third)


@pytest.mark.parametrize("ignore_index", [None, 0])
def test_regions_equal_monai_on_their_unions(volumes, ignore_index):
    logits, target = volumes(present=4)
    is_valid = torch.ones_like(target) if ignore_index is None else (target != ignore_index).long()
    probs = torch.stack([logits.softmax(1)[:, r].sum(1) for r in REGIONS], dim=1) * is_valid[:, None]
    truth = torch.stack([torch.isin(target, torch.tensor(r)) for r in REGIONS], dim=1).float()
    given = {"regions": REGIONS, "ignore_index": ignore_index}
    expected = DiceLoss(reduction="none")(probs, truth).flatten(1).mean(1)
    torch.testing.assert_close(dice_loss(logits, target, **given), expected, atol=1e-5, rtol=0)
    expected = TverskyLoss(reduction="none", alpha=0.3, beta=0.7)(probs, truth).flatten(1).mean(1)
    torch.testing.assert_close(tversky_loss(logits, target, alpha=0.3, beta=0.7, **given), expected, atol=1e-5, rtol=0)


def test_regions_of_single_classes_are_the_classes(volumes):
    logits, target = volumes(dtype=torch.float64)
    for kind in ("soft", "generalised"):
        per_class = dice_loss(logits, target, kind=kind)
        torch.testing.assert_close(dice_loss(logits, target, kind=kind, regions=[[1], [2], [3]]), per_class)


def test_dice_keeps_its_digits_on_large_volumes():
    # A million voxels of one value: a running float32 sum would be off in the fourth digit.
    logits = torch.zeros(1, 2, 100, 100, 100)
    target = torch.ones(1, 100, 100, 100, dtype=torch.int64)
    logits[:, 1] = math.log(9)  # p = 0.9: 1 - 2 * 0.9 / 1.9
    for regions in ([], [[1]]):
        found = dice_loss(logits, target, regions=regions)
        torch.testing.assert_close(found, torch.tensor([1 - 1.8 / 1.9]), atol=1e-6, rtol=0)
