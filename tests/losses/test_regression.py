"""Smooth L1 and the Gaussian likelihood: by hand and against torch."""

import pytest
import torch
import torch.nn.functional as F

from mri_ds.losses import LOG_VARIANCE_BOUND, gaussian_nll_loss, regression_loss


def test_smooth_l1_by_hand():
    # Errors of 0.5 and -3 standard deviations: 0.5^2 / 2 = 0.125 and 3 - 0.5 = 2.5.
    loss = regression_loss(torch.tensor([45.0, 10.0]), torch.tensor([40.0, 40.0]), std=10.0)
    torch.testing.assert_close(loss, torch.tensor([0.125, 2.5]))


def test_both_equal_torch():
    generator = torch.Generator().manual_seed(0)
    prediction, target, raw = (10 * torch.randn(8, generator=generator) for _ in range(3))
    expected = F.smooth_l1_loss(prediction / 5, target / 5, beta=0.5, reduction="none")
    torch.testing.assert_close(regression_loss(prediction, target, std=5.0, beta=0.5), expected)
    variance = torch.exp(LOG_VARIANCE_BOUND * torch.tanh(raw / LOG_VARIANCE_BOUND))
    expected = F.gaussian_nll_loss(prediction / 5, target / 5, variance, reduction="none", eps=1e-12)
    torch.testing.assert_close(gaussian_nll_loss(prediction, target, raw, std=5.0), expected, atol=1e-5, rtol=1e-5)


def test_gradcheck():
    prediction = torch.tensor([1.0, 20.0, -30.0], dtype=torch.float64, requires_grad=True)
    target, raw = torch.tensor([3.0, 4.0, 5.0]), torch.tensor([0.5, -1.0, 3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: regression_loss(p, target, std=10.0), prediction)
    assert torch.autograd.gradcheck(lambda p, s: gaussian_nll_loss(p, target, s, std=10.0), (prediction, raw))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_finite_in_half_precision(dtype):
    for value in (-60.0, 0.0, 60.0):
        for sure in (-60.0, 60.0):
            prediction = torch.tensor([value], dtype=dtype, requires_grad=True)
            raw = torch.tensor([sure], dtype=dtype, requires_grad=True)
            loss = regression_loss(prediction, torch.zeros(1)) + gaussian_nll_loss(prediction, torch.zeros(1), raw)
            loss.sum().backward()
            assert loss.dtype == torch.float32
            assert all(x.isfinite().all() for x in (loss, prediction.grad, raw.grad))


def test_the_likelihood_finds_the_spread():
    """Errors of 2 and of 1/2 std: the best log-variance of each group is the log of its mean squared error."""
    error = torch.tensor([2.0, -2.0, 0.5, -0.5])
    raw = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam([raw], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        gaussian_nll_loss(error, torch.zeros(4), raw[[0, 0, 1, 1]]).sum().backward()
        optimizer.step()
    bounded = LOG_VARIANCE_BOUND * torch.tanh(raw.detach() / LOG_VARIANCE_BOUND)
    torch.testing.assert_close(bounded.exp(), torch.tensor([4.0, 0.25]), atol=0, rtol=1e-2)
