"""Cross-entropy of classes and of grades: by hand, against torch, and what a grade should cost."""

import pytest
import torch
import torch.nn.functional as F

from mri_ds.losses import class_loss, ordinal_loss


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_ordinal_equals_the_binary_questions_it_is_made_of(label_smoothing):
    logits = 3 * torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([0, 1, 2, 3, 4, 2])
    smoothed = (1 - label_smoothing) * F.one_hot(target, 5) + label_smoothing / 5
    above, truth = (x.double().cumsum(1)[:, :-1] for x in (logits.softmax(1), smoothed))
    expected = F.binary_cross_entropy(1 - above, 1 - truth, reduction="none").mean(1)
    ours = class_loss(logits, target, ordinal=True, label_smoothing=label_smoothing)
    torch.testing.assert_close(ours, expected.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_ordinal_of_two_grades_is_cross_entropy(label_smoothing):
    logits, target = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 1, 0])
    expected = F.cross_entropy(logits, target, reduction="none", label_smoothing=label_smoothing)
    torch.testing.assert_close(class_loss(logits, target, label_smoothing=label_smoothing), expected)
    torch.testing.assert_close(ordinal_loss(logits, target, label_smoothing=label_smoothing), expected)


def test_a_guess_further_from_the_truth_costs_more():
    guesses = 4.0 * torch.eye(5)  # sure of grade 0, 1, ... 4
    cost = ordinal_loss(guesses, torch.full((5,), 1))
    assert cost[1] < cost[0] and cost[1] < cost[2] < cost[3] < cost[4]
    plain = class_loss(guesses, torch.full((5,), 1))
    torch.testing.assert_close(plain[[2, 3, 4]], plain[[0, 0, 0]])  # to cross-entropy one mistake is as good as another


@pytest.mark.parametrize("ordinal", [False, True])
def test_gradcheck_and_finite_in_half_precision(ordinal):
    target = torch.tensor([0, 2, 1, 1])
    logits = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: class_loss(z, target, label_smoothing=0.1, ordinal=ordinal), logits)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for sign in (-60.0, 60.0):
            sure = (sign * F.one_hot(target, 3)).to(dtype).requires_grad_()
            loss = class_loss(sure, target, ordinal=ordinal)
            loss.sum().backward()
            assert loss.dtype == torch.float32 and loss.isfinite().all() and sure.grad.isfinite().all()
