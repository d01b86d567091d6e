"""Sums over tasks, which must not depend on where labels sit, and their learned weights."""

import math

import pytest
import torch

from mri_ds.losses import (
    LOG_VARIANCE_BOUND,
    SUBJECT_LOSS,
    MultiTaskLoss,
    class_loss,
    deep_segmentation_loss,
    gaussian_nll_loss,
    regression_loss,
    segmentation_loss,
)
from mri_ds.sample import coarser, log_variance

TASKS = {
    "tissue": {"kind": "segmentation", "classes": ["none", "grey", "white"]},
    "lesion": {"kind": "classification", "classes": ["none", "few", "many"]},
    "age": {"kind": "regression", "options": {"std": 20.0}},
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


def trained_loss(tasks=TASKS):
    """A MultiTaskLoss whose weights are away from 1."""
    loss = MultiTaskLoss(tasks).double()
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
        MultiTaskLoss({"tissue": {"kind": "segmentation", "options": {"dice": 0.0, "cross_entropy": 0.0}}})
    with pytest.raises(ValueError, match="no task"):
        MultiTaskLoss({})


def test_losses_of_subjects_are_means_over_the_labels_they_have():
    """Worked: ages off by 1.5 and 3 std give 1 and 2.5; with a lesion's log 3 beside it the first subject's mean is of two."""
    loss = MultiTaskLoss({"age": {"kind": "regression", "options": {"std": 20.0}}, "lesion": {"kind": "classification"}})
    predictions = {"age": torch.tensor([80.0, 110.0, 0.0], requires_grad=True), "lesion": torch.zeros(3, 3)}
    targets = {"age": torch.tensor([50.0, 50.0, 50.0]), "lesion": torch.tensor([1, 0, 0])}
    mask = {"age": torch.tensor([1.5, 1.5, 0.0]), "lesion": torch.tensor([3.0, 0.0, 0.0])}  # weights, see Batch.mask
    result = loss(predictions, targets, mask)[SUBJECT_LOSS]
    assert result[:2].tolist() == pytest.approx([(1.0 + math.log(3)) / 2, 2.5], rel=1e-5)
    assert result[2].isnan() and not result.requires_grad


CHOSEN = {
    "tissue": {"kind": "segmentation", "options": {"tversky": 0.5, "ignore_index": 1}, "deep_supervision": [1.0, 0.3]},
    "lesion": {"kind": "classification", "options": {"ordinal": True}},
    "age": {"kind": "regression", "gaussian": True, "options": {"std": 20.0}},
}


def test_each_task_has_the_loss_it_was_given():
    predictions, targets = study()
    predictions[coarser("tissue")] = torch.randn(4, 3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    predictions[log_variance("age")] = torch.randn(4, dtype=torch.float64, requires_grad=True)
    loss = trained_loss(CHOSEN)
    result = loss(predictions, targets, {name: torch.ones(4) for name in CHOSEN})
    levels, options = [predictions[coarser("tissue")]], CHOSEN["tissue"]["options"]
    expected = {
        "tissue": deep_segmentation_loss(predictions["tissue"], levels, targets["tissue"], weights=[1.0, 0.3], **options),
        "lesion": class_loss(predictions["lesion"], targets["lesion"], ordinal=True),
        "age": gaussian_nll_loss(predictions["age"], targets["age"], predictions[log_variance("age")], std=20.0),
    }
    s = LOG_VARIANCE_BOUND * torch.tanh(loss.log_variance / LOG_VARIANCE_BOUND)
    total = expected["age"].mean()  # a Gaussian has its variance in it: weight 1, and nothing to learn beside it
    for index, name in enumerate(["tissue", "lesion"]):
        torch.testing.assert_close(result[name], expected[name].mean().detach())
        total = total + torch.exp(-s[index]) * expected[name].mean() + s[index] / 2
    torch.testing.assert_close(result["loss"], total)
    assert result["weight/age"] == 1
    result["loss"].backward()
    assert loss.log_variance.grad[2] == 0 and all(p.grad.any() for p in predictions.values())
    del predictions[coarser("tissue")]  # as in evaluation
    plain = segmentation_loss(predictions["tissue"], targets["tissue"], **options).mean()
    found = loss(predictions, targets, {name: torch.ones(4) for name in CHOSEN})["tissue"]
    torch.testing.assert_close(found, plain.detach())


@pytest.mark.parametrize("absent", list(CHOSEN))
def test_absent_task_of_a_chosen_loss_adds_exactly_nothing(absent):
    predictions, targets = study()
    predictions[coarser("tissue")] = torch.randn(4, 3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    predictions[log_variance("age")] = torch.randn(4, dtype=torch.float64, requires_grad=True)
    loss = trained_loss(CHOSEN)
    loss(predictions, targets, {name: torch.full((4,), float(name != absent)) for name in CHOSEN})["loss"].backward()
    assert loss.log_variance.grad[list(CHOSEN).index(absent)] == 0
    for name, prediction in predictions.items():
        assert prediction.grad is not None and bool(prediction.grad.any()) == (not name.startswith(absent))
