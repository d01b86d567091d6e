"""Losses against MONAI and torch, extreme inputs, and sums over tasks that must not depend on where labels sit."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceLoss, FocalLoss
from scipy.ndimage import maximum_filter, minimum_filter

from mri_ds.losses import (
    LOG_VARIANCE_BOUND,
    SUBJECT_LOSS,
    MultiTaskLoss,
    balanced_weights,
    boundary_loss,
    boundary_voxels,
    class_loss,
    cross_entropy_loss,
    dice_loss,
    regression_loss,
    segmentation_loss,
)

TERMS = {"dice": 0.7, "cross_entropy": 1.3, "boundary": 0.4, "focal_gamma": 2.0, "label_smoothing": 0.1}


def volumes(num_classes=4, *, present=3, shape=(5, 6, 7), dtype=torch.float32):
    """Logits and a target in which the last class is absent."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, num_classes, *shape, generator=generator, dtype=dtype)
    return logits, torch.randint(0, present, (2, *shape), generator=generator)


def test_dice_by_hand():
    # Two voxels of classes 0 and 1, p(class 1) = 1/2 and 3/4: overlap 0.75, mass 1.25, volume 1: 1 - 1.5 / 2.25 = 1/3.
    logits = torch.tensor([[[0.0, 0.0], [0.0, math.log(3)]]]).view(1, 2, 1, 1, 2)
    target = torch.tensor([0, 1]).view(1, 1, 1, 2)
    torch.testing.assert_close(dice_loss(logits, target, smooth=0.0), torch.tensor([1 / 3]))
    # Class 0: p = 1/2 and 1/4, overlap 0.5, mass 0.75, volume 1: 1 - 1 / 1.75 = 3/7; the mean of both is 8/21.
    torch.testing.assert_close(dice_loss(logits, target, smooth=0.0, include_background=True), torch.tensor([8 / 21]))


def test_cross_entropy_by_hand():
    # The same voxels: -log(1/2) = 0.69315, -log(3/4) = 0.28768, mean 0.49041; focal with gamma 1 weighs by 1/2 and 1/4.
    logits = torch.tensor([[[0.0, 0.0], [0.0, math.log(3)]]]).view(1, 2, 1, 1, 2)
    target = torch.tensor([0, 1]).view(1, 1, 1, 2)
    torch.testing.assert_close(cross_entropy_loss(logits, target), torch.tensor([0.49041]), atol=1e-5, rtol=0)
    expected = torch.tensor([(0.69315 / 2 + 0.28768 / 4) / 2])
    torch.testing.assert_close(cross_entropy_loss(logits, target, gamma=1.0), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("include_background", [True, False])
def test_dice_equals_monai(include_background):
    logits, target = volumes()
    monai = DiceLoss(include_background=include_background, softmax=True, to_onehot_y=True, reduction="none")
    expected = monai(logits, target[:, None]).flatten(1).mean(1)
    torch.testing.assert_close(dice_loss(logits, target, include_background=include_background), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("gamma", [1.0, 2.0])
def test_focal_equals_monai(gamma):
    logits, target = volumes()
    monai = FocalLoss(use_softmax=True, to_onehot_y=True, gamma=gamma, reduction="none")
    expected = monai(logits, target[:, None]).sum(1).flatten(1).mean(1)  # MONAI's own mean also counts the K - 1 zeros of a voxel
    torch.testing.assert_close(cross_entropy_loss(logits, target, gamma=gamma), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_cross_entropy_equals_torch(label_smoothing):
    logits, target = volumes()
    expected = F.cross_entropy(logits, target, reduction="none", label_smoothing=label_smoothing).flatten(1).mean(1)
    torch.testing.assert_close(cross_entropy_loss(logits, target, label_smoothing=label_smoothing), expected)


@pytest.mark.parametrize("shape", [(6, 7, 8), (1, 5, 1)])
def test_boundary_equals_scipy_filters(shape):
    logits, _ = volumes(shape=shape)
    target = torch.zeros(2, *shape, dtype=torch.int64)
    target[0, : (shape[0] + 1) // 2, 1:4] = 2
    target[1, ..., 1:, :] = 1
    labels = target.numpy()
    size = (1, 3, 3, 3)
    expected = maximum_filter(labels, size, mode="nearest") != minimum_filter(labels, size, mode="nearest")
    np.testing.assert_array_equal(boundary_voxels(target).numpy(), expected)
    per_voxel = F.cross_entropy(logits, target, reduction="none")
    mean = torch.stack([loss[torch.from_numpy(where)].mean() for loss, where in zip(per_voxel, expected)])
    torch.testing.assert_close(boundary_loss(logits, target), mean)


def test_boundary_of_one_class_is_empty_and_costs_nothing():
    logits, target = volumes(present=1)
    logits.requires_grad_()
    loss = boundary_loss(logits, target)
    loss.sum().backward()
    assert torch.equal(loss, torch.zeros(2)) and logits.grad is not None and not logits.grad.any()


def test_fused_terms_equal_their_sum():
    logits, target = volumes(dtype=torch.float64)
    expected = (
        0.7 * dice_loss(logits, target)
        + 1.3 * cross_entropy_loss(logits, target, label_smoothing=0.1, gamma=2.0)
        + 0.4 * boundary_loss(logits, target)
    )
    torch.testing.assert_close(segmentation_loss(logits, target, **TERMS), expected)


@pytest.mark.parametrize("terms", [{}, TERMS, {"dice": 0.0, "cross_entropy": 0.0, "boundary": 1.0}])
def test_segmentation_gradcheck(terms):
    logits, target = volumes(shape=(2, 3, 2), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: segmentation_loss(z, target, **terms), logits.requires_grad_())


def test_class_and_regression_gradcheck():
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: class_loss(z, torch.tensor([0, 2, 1, 1]), label_smoothing=0.1), logits)
    prediction = torch.tensor([1.0, 20.0, -30.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: regression_loss(p, torch.tensor([3.0, 4.0, 5.0]), std=10.0), prediction)


def test_regression_by_hand():
    # Errors of 0.5 and -3 standard deviations: 0.5^2 / 2 = 0.125 and 3 - 0.5 = 2.5.
    loss = regression_loss(torch.tensor([45.0, 10.0]), torch.tensor([40.0, 40.0]), std=10.0)
    torch.testing.assert_close(loss, torch.tensor([0.125, 2.5]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("present", [1, 3])
@pytest.mark.parametrize("sign", [-60.0, 60.0])
def test_finite_at_certain_logits_and_in_half_precision(dtype, present, sign):
    _, target = volumes(present=present)
    logits = (sign * F.one_hot(target, 4).movedim(-1, 1)).to(dtype).requires_grad_()
    loss = segmentation_loss(logits, target, **TERMS)
    loss.sum().backward()
    assert loss.dtype == torch.float32 and loss.isfinite().all()
    assert logits.grad is not None and logits.grad.dtype == dtype and logits.grad.isfinite().all()
    if sign > 0:  # sure and right: Dice 0 (absent classes score a perfect 1), focal 0, only the smoothing of +-60 remains
        expected = 1.3 * 0.1 * 60 * 3 / 4
        torch.testing.assert_close(loss.detach(), torch.full((2,), expected), atol=1e-3, rtol=0)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_gradient_of_a_certain_voxel_is_zero_not_nan(gamma):
    logits = torch.tensor([60.0, -60.0]).view(1, 2, 1, 1, 1).requires_grad_()
    cross_entropy_loss(logits, torch.zeros(1, 1, 1, 1, dtype=torch.int64), gamma=gamma).sum().backward()
    assert logits.grad is not None and torch.equal(logits.grad, torch.zeros_like(logits))


def test_dice_keeps_its_digits_on_large_volumes():
    # A million voxels of one value: a running float32 sum would be off in the fourth digit.
    logits = torch.zeros(1, 2, 100, 100, 100)
    target = torch.ones(1, 100, 100, 100, dtype=torch.int64)
    logits[:, 1] = math.log(9)  # p = 0.9: 1 - 2 * 0.9 / 1.9
    torch.testing.assert_close(dice_loss(logits, target), torch.tensor([1 - 1.8 / 1.9]), atol=1e-6, rtol=0)


# --- several tasks -----------------------------------------------------------------------------------------------------

TASKS = {
    "tissue": {"kind": "segmentation", "classes": ["none", "grey", "white"]},
    "lesion": {"kind": "classification", "classes": ["none", "few", "many"]},
    "age": {"kind": "regression", "mean": 50.0, "std": 20.0},
}


def study(batch=4):
    """Predictions (leaves) and targets of all three tasks in float64."""
    generator = torch.Generator().manual_seed(1)
    predictions = {
        "tissue": torch.randn(batch, 3, 4, 4, 4, generator=generator, dtype=torch.float64),
        "lesion": torch.randn(batch, 3, generator=generator, dtype=torch.float64),
        "age": 50 + 30 * torch.randn(batch, generator=generator, dtype=torch.float64),
    }
    targets = {
        "tissue": torch.randint(0, 3, (batch, 4, 4, 4), generator=generator),
        "lesion": torch.randint(0, 3, (batch,), generator=generator),
        "age": 50 + 30 * torch.randn(batch, generator=generator),
    }
    return {name: value.requires_grad_() for name, value in predictions.items()}, targets


def trained_loss(**options):
    """A MultiTaskLoss whose weights are away from 1."""
    loss = MultiTaskLoss(TASKS, **options).double()
    with torch.no_grad():
        loss.log_variance.copy_(torch.tensor([0.5, -1.0, 2.0]))
    return loss


def test_uncertainty_weights_by_hand():
    # Regression, error 1.5 std -> L = 1; s = 4 tanh(2 / 4) = 1.84847: exp(-s) L / 2 + s / 2 = 0.07874 + 0.92423.
    loss = MultiTaskLoss({"age": TASKS["age"]})
    torch.nn.init.constant_(loss.log_variance, 2.0)
    result = loss({"age": torch.tensor([80.0])}, {"age": torch.tensor([50.0])}, {"age": torch.ones(1)})
    assert set(result) == {"loss", "age", "weight/age", SUBJECT_LOSS}
    torch.testing.assert_close(result["age"], torch.tensor(1.0))
    torch.testing.assert_close(result["weight/age"], torch.tensor(0.15748), atol=1e-5, rtol=0)
    torch.testing.assert_close(result["loss"].detach(), torch.tensor(0.07874 + 0.92423), atol=1e-5, rtol=0)


def test_without_learned_weights_it_is_the_plain_sum():
    predictions, targets = study()
    loss = MultiTaskLoss(TASKS, learn_task_weights=False)
    result = loss(predictions, targets, {name: torch.ones(4) for name in TASKS})
    assert not list(loss.parameters())
    expected = (
        segmentation_loss(predictions["tissue"], targets["tissue"]).mean()
        + class_loss(predictions["lesion"], targets["lesion"]).mean()
        + regression_loss(predictions["age"], targets["age"], std=20.0).mean()
    )
    torch.testing.assert_close(result["loss"], expected)
    assert all(result[f"weight/{name}"] == 1 for name in TASKS)


def test_only_the_sum_is_attached():
    predictions, targets = study()
    result = trained_loss()(predictions, targets, {name: torch.ones(4) for name in TASKS})
    assert [name for name, value in result.items() if value.requires_grad] == ["loss"]


def test_gradcheck_with_the_learned_weights():
    predictions, targets = study(batch=2)
    loss, names = trained_loss(), list(TASKS)
    mask = {"tissue": torch.tensor([2.0, 0.0]), "lesion": torch.ones(2), "age": torch.tensor([0.5, 1.0])}

    def total(log_variance, *values):
        call = (dict(zip(names, values)), targets, mask)
        return torch.func.functional_call(loss, {"log_variance": log_variance}, call)["loss"]

    assert torch.autograd.gradcheck(total, (loss.log_variance, *predictions.values()))


@pytest.mark.parametrize("absent", list(TASKS))
def test_absent_task_adds_exactly_nothing(absent):
    predictions, targets = study()
    mask = {name: torch.full((4,), float(name != absent)) for name in TASKS}
    loss = trained_loss()
    total = loss(predictions, targets, mask)["loss"]
    total.backward()
    index = list(TASKS).index(absent)
    assert loss.log_variance.grad[index] == 0
    assert (loss.log_variance.grad[torch.arange(3) != index] != 0).all()
    assert predictions[absent].grad is not None and not predictions[absent].grad.any()

    others = MultiTaskLoss({name: task for name, task in TASKS.items() if name != absent}).double()
    with torch.no_grad():
        others.log_variance.copy_(loss.log_variance[torch.arange(3) != index])
    torch.testing.assert_close(total, others(predictions, targets, mask)["loss"], atol=0, rtol=1e-12)


def test_fillers_are_never_read():
    predictions, targets = study()
    mask = {name: torch.tensor([1.0, 0.0, 2.0, 0.0]) for name in TASKS}

    def outcome(targets):
        loss = trained_loss()
        total = loss(predictions, targets, mask)["loss"]
        return [total, *torch.autograd.grad(total, [loss.log_variance, *predictions.values()])]

    clean = outcome(targets)
    fillers = {"tissue": -100, "lesion": 10**6, "age": float("nan")}
    dirty = {name: value.clone() for name, value in targets.items()}
    for name, filler in fillers.items():
        dirty[name][[1, 3]] = filler
    for left, right in zip(outcome(dirty), clean):
        assert torch.equal(left, right) and left.isfinite().all()


@pytest.mark.parametrize("sharding", [[[0, 1], [2, 3]], [[0], [1], [2], [3]]])
def test_mean_over_ranks_is_the_mean_over_labelled_subjects(sharding):
    """Adversarial labels: subject 0 has none, subject 1 only age, tissue sits on one subject alone."""
    predictions, targets = study()
    has_label = {"tissue": [0, 0, 0, 1], "lesion": [0, 0, 1, 1], "age": [0, 1, 1, 1]}
    mask = {name: torch.tensor(flags).double() * 4 / sum(flags) for name, flags in has_label.items()}
    leaves = list(predictions.values())

    loss = trained_loss()
    means = {}
    for name, per_subject in {
        "tissue": segmentation_loss(predictions["tissue"], targets["tissue"]),
        "lesion": class_loss(predictions["lesion"], targets["lesion"]),
        "age": regression_loss(predictions["age"], targets["age"], std=20.0),
    }.items():
        means[name] = per_subject[torch.tensor(has_label[name]) == 1].mean()
    s = LOG_VARIANCE_BOUND * torch.tanh(loss.log_variance / LOG_VARIANCE_BOUND)
    halves = torch.tensor([1.0, 1.0, 0.5])
    expected = sum(halves[t] * torch.exp(-s[t]) * means[name] + s[t] / 2 for t, name in enumerate(TASKS))
    expected_grads = torch.autograd.grad(expected, [loss.log_variance, *leaves])

    total, logs = 0.0, dict.fromkeys(TASKS, 0.0)
    for rows in sharding:
        parts = [{name: value[rows] for name, value in group.items()} for group in (predictions, targets, mask)]
        result = loss(*parts)
        total = total + result["loss"] / len(sharding)
        logs = {name: logs[name] + result[name] / len(sharding) for name in TASKS}
    torch.testing.assert_close(total, expected, atol=0, rtol=1e-12)
    for name in TASKS:
        torch.testing.assert_close(logs[name], means[name].detach(), atol=0, rtol=1e-12)
    for left, right in zip(torch.autograd.grad(total, [loss.log_variance, *leaves]), expected_grads):
        torch.testing.assert_close(left, right, atol=1e-12, rtol=1e-10)


def test_weights_stay_bounded_and_can_come_back():
    loss = MultiTaskLoss({"age": TASKS["age"]})
    torch.nn.init.constant_(loss.log_variance, 20.0)
    result = loss({"age": torch.tensor([800.0])}, {"age": torch.tensor([50.0])}, {"age": torch.ones(1)})
    assert result["weight/age"] >= math.exp(-LOG_VARIANCE_BOUND)
    result["loss"].backward()
    assert loss.log_variance.grad < 0 or loss.log_variance.grad > 0


def test_weights_find_the_uncertainty():
    # d / ds (exp(-s) L + s / 2) = 0 at s = log(2 L).
    loss = MultiTaskLoss({"lesion": TASKS["lesion"]})
    batch = ({"lesion": torch.zeros(1, 3)}, {"lesion": torch.tensor([1])}, {"lesion": torch.ones(1)})
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.5)
    for _ in range(100):
        optimizer.zero_grad()
        loss(*batch)["loss"].backward()
        optimizer.step()
    assert loss(*batch)["weight/lesion"].item() == pytest.approx(1 / (2 * math.log(3)), rel=1e-4)


def test_bf16_weights_are_used_in_float32():
    predictions, targets = study()
    loss = trained_loss().bfloat16()
    halves = {name: value.detach().bfloat16().requires_grad_() for name, value in predictions.items()}
    result = loss(halves, targets, {name: torch.ones(4) for name in TASKS})
    assert result["loss"].dtype == torch.float32
    exact = trained_loss()(predictions, targets, {name: torch.ones(4) for name in TASKS})["loss"]
    assert result["loss"].item() == pytest.approx(exact.item(), rel=0.01)


def test_what_cannot_be_learned_is_named():
    with pytest.raises(ValueError, match="'age': unknown kind 'ordinal', use one of segmentation, classification, regression"):
        MultiTaskLoss({"age": {"kind": "ordinal"}})
    with pytest.raises(ValueError, match="'tissue' has no loss"):
        MultiTaskLoss(TASKS, dice=0.0, cross_entropy=0.0)
    with pytest.raises(ValueError, match="no task"):
        MultiTaskLoss({})


def test_class_weights_scale_each_voxels_cross_entropy_by_its_class():
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 2, 2, 2), torch.randint(0, 3, (2, 2, 2, 2))
    weights = [0.5, 2.0, 3.0]
    ours = segmentation_loss(logits, target, dice=0.0, class_weights=weights)
    theirs = torch.nn.functional.cross_entropy(logits, target, torch.tensor(weights), reduction="none").mean(dim=(1, 2, 3))
    torch.testing.assert_close(ours, theirs)


def test_balanced_weights_are_one_on_average_and_even_out_at_power_one():
    prior = [0.9, 0.09, 0.01]
    for power in (0.0, 0.5, 1.0):
        assert sum(p * w for p, w in zip(prior, balanced_weights(prior, power), strict=True)) == pytest.approx(1.0)
    assert balanced_weights(prior, 0.0) == [1.0, 1.0, 1.0]
    assert [p * w for p, w in zip(prior, balanced_weights(prior, 1.0), strict=True)] == pytest.approx([1 / 3] * 3)
    assert max(balanced_weights([1.0, 0.0], 1.0)) <= 1e4  # a class that training never saw weighs no more than the rarest


def test_losses_of_subjects_are_means_over_the_labels_they_have():
    """Worked: ages off by 1.5 and 3 std give 1 and 2.5; with a lesion's log 3 beside it the first subject's mean is of two."""
    loss = MultiTaskLoss({"age": {"kind": "regression", "std": 20.0}, "lesion": {"kind": "classification"}})
    predictions = {"age": torch.tensor([80.0, 110.0, 0.0], requires_grad=True), "lesion": torch.zeros(3, 3)}
    targets = {"age": torch.tensor([50.0, 50.0, 50.0]), "lesion": torch.tensor([1, 0, 0])}
    mask = {"age": torch.tensor([1.5, 1.5, 0.0]), "lesion": torch.tensor([3.0, 0.0, 0.0])}  # weights, see Batch.mask
    result = loss(predictions, targets, mask)[SUBJECT_LOSS]
    assert result[:2].tolist() == pytest.approx([(1.0 + math.log(3)) / 2, 2.5], rel=1e-5)
    assert result[2].isnan() and not result.requires_grad
