"""Splines against scipy, their continuation beyond the grid against the tangent, and what a layer must be able to learn."""

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from torch import nn

from mri_ds.nn import kan
from mri_ds.nn.kan import OptimizedKANLayer, bspline_basis, local_splines


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["uniform", "uneven", "clamped"])
def test_basis_equals_scipy_design_matrix(degree, kind):
    rng = np.random.default_rng(degree)
    inner = np.linspace(-1, 1, 9)
    knots = {
        "uniform": np.linspace(-2, 2, 9 + 2 * degree),
        "uneven": np.sort(rng.uniform(-2, 2, 9 + 2 * degree)),
        "clamped": np.r_[[-1.0] * degree, inner, [1.0] * degree],
    }[kind]
    first, last = knots[degree], knots[-degree - 1]
    x = np.r_[first, last, knots[degree + 2], rng.uniform(first, last, 200)]
    result = bspline_basis(torch.tensor(x), torch.tensor(knots), degree)
    np.testing.assert_allclose(result.numpy(), BSpline.design_matrix(x, knots, degree).toarray(), rtol=0, atol=1e-12)


def test_cubic_basis_by_hand():
    # At a knot of a uniform cubic spline the bases are 1/6, 4/6, 1/6; half way between two knots 1/48, 23/48, 23/48, 1/48.
    _, values, _ = local_splines(torch.tensor([[0.0, 0.5]]), start=0.0, interval=1.0, grid_size=4, degree=3)
    expected = torch.tensor([[[1 / 6, 4 / 6, 1 / 6, 0], [1 / 48, 23 / 48, 23 / 48, 1 / 48]]])
    torch.testing.assert_close(values, expected)


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_splines_sum_to_one_and_slopes_to_zero_everywhere(degree):
    x = torch.linspace(-9, 9, 301, dtype=torch.float64)[:, None]
    _, values, slopes = local_splines(x, start=-2.0, interval=0.5, grid_size=8, degree=degree)
    torch.testing.assert_close(values.sum(-1), torch.ones_like(x), atol=1e-12, rtol=0)
    torch.testing.assert_close(slopes.sum(-1), torch.zeros_like(x), atol=1e-12, rtol=0)


def curves_only(layer):
    """The layer without its base path."""
    nn.init.zeros_(layer.linear.weight)
    nn.init.zeros_(layer.linear.bias)
    return layer


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_layer_equals_sums_of_scipy_splines_and_leaves_the_grid_along_the_tangent(degree):
    torch.manual_seed(0)
    layer = curves_only(OptimizedKANLayer(3, 2, grid_size=5, degree=degree, grid_range=(-1.0, 1.5))).double()
    x = torch.cat([torch.rand(50, 3) * 2.5 - 1, torch.tensor([[-1.0, 1.5, 0.0], [-4.0, 7.0, -1.2]])]).double()
    knots = -1.0 + 0.5 * np.arange(-degree, 5 + degree + 1)
    expected = np.zeros((len(x), 2))
    for o in range(2):
        for i in range(3):
            curve = BSpline(knots, layer.coefficients[o, i].detach().numpy(), degree)
            inside = np.clip(x[:, i].numpy(), -1.0, 1.5)
            edge = np.where(inside == 1.5, 1.5 - 1e-13, inside)  # scipy takes a degree-1 slope from the right; there is none
            expected[:, o] += curve(inside) + curve.derivative()(edge) * (x[:, i].numpy() - inside)
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, atol=1e-9)


def test_base_path_by_hand():
    # Even mixture, x = 0: relu 0, tanh 0, sigmoid 1/2, silu 0 -> 1/8; weight 2, bias 1 -> 1.25. Curves are set to zero.
    layer = OptimizedKANLayer(1, 1)
    nn.init.zeros_(layer.coefficients)
    nn.init.constant_(layer.linear.weight, 2.0)
    nn.init.constant_(layer.linear.bias, 1.0)
    torch.testing.assert_close(layer(torch.zeros(1, 1)), torch.tensor([[1.25]]))
    for place, activation in enumerate((torch.relu, torch.tanh, torch.sigmoid, nn.functional.silu)):
        with torch.no_grad():
            layer.mixture.fill_(-100.0)[:, place] = 100.0
        x = torch.linspace(-3, 3, 7)[:, None]
        torch.testing.assert_close(layer(x), 2 * activation(x) + 1)


def test_gradcheck_inside_and_outside_the_grid():
    torch.manual_seed(0)
    layer = OptimizedKANLayer(3, 2, grid_size=4).double()
    x = (3 * torch.randn(7, 3, dtype=torch.float64)).requires_grad_()
    assert (x.abs() > 2).any() and (x.abs() < 2).any()
    names, values = zip(*layer.named_parameters())
    assert torch.autograd.gradcheck(
        lambda x, *values: torch.func.functional_call(layer, dict(zip(names, values)), (x,)), (x, *values)
    )


def test_blocks_of_rows_change_nothing(monkeypatch):
    torch.manual_seed(0)
    layer, x = OptimizedKANLayer(5, 4).double(), torch.randn(3, 11, 5, dtype=torch.float64, requires_grad=True)
    results = []
    for block in (2**20, 2 * 5 * 11):  # all rows at once; two rows at a time
        monkeypatch.setattr(kan, "CPU_BLOCK", block)
        y = layer(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, layer.coefficients])])
    for whole, pieces in zip(*results):
        torch.testing.assert_close(pieces, whole, atol=1e-12, rtol=1e-12)


def test_bf16_casts_weights_but_not_the_grid():
    torch.manual_seed(0)
    layer, x = OptimizedKANLayer(16, 8, grid_range=(-3.0, 3.0), grid_size=7), torch.randn(64, 16).bfloat16()
    exact = layer(x.float())
    layer.bfloat16()
    result = layer(x)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), exact, atol=0.02, rtol=0.02)
    result.float().square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_bf16_inputs_find_their_place_on_the_grid_in_float32():
    x = torch.randn(64, 4).bfloat16()
    for half, whole in zip(local_splines(x, -2.0, 0.3, 13, 3), local_splines(x.float(), -2.0, 0.3, 13, 3)):
        assert torch.equal(half, whole)


def test_autocast_trains():
    layer, x = OptimizedKANLayer(4, 3), torch.randn(6, 4, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = layer(x).float().square().sum()
    loss.backward()
    assert layer.coefficients.grad is not None and layer.coefficients.grad.dtype == torch.float32


def test_far_inputs_are_never_a_silent_zero_and_nan_stays_nan():
    layer = curves_only(OptimizedKANLayer(1, 1))
    far = layer(torch.tensor([[-1e4], [1e4]]))
    assert far.isfinite().all() and (far.abs() > 1).all()
    assert layer(torch.tensor([[float("nan")]])).isnan().all()


def relativistic_sum_rmse(*, with_curves):
    torch.manual_seed(0)
    net = nn.Sequential(OptimizedKANLayer(2, 1, grid_range=(-1, 1)), OptimizedKANLayer(1, 1, grid_range=(-3, 3))).double()
    for layer in net:
        if not with_curves:
            nn.init.zeros_(layer.coefficients).requires_grad_(False)
    inputs = 1.6 * torch.rand(400, 2, dtype=torch.float64) - 0.8
    truth = (inputs.sum(1) / (1 + inputs.prod(1)))[:, None]
    weights = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer = torch.optim.LBFGS(weights, max_iter=150, line_search_fn="strong_wolfe", tolerance_change=0)

    def loss():
        optimizer.zero_grad()
        value = (net(inputs) - truth).square().mean()
        value.backward()
        return value

    optimizer.step(loss)
    return loss().sqrt().item()


def test_learns_a_relativistic_sum_with_its_curves():
    # (u + v) / (1 + u v) = tanh(atanh u + atanh v): one hidden unit holds it, if its curves can bend as they should.
    with_curves, without = relativistic_sum_rmse(with_curves=True), relativistic_sum_rmse(with_curves=False)
    assert with_curves < 3e-3 and without > 0.05


def test_bad_grids_are_named():
    with pytest.raises(ValueError, match="increasing grid_range"):
        OptimizedKANLayer(1, 1, grid_range=(1, -1))
    with pytest.raises(ValueError, match="degree 3 needs at least 8 knots, got 7"):
        bspline_basis(torch.zeros(1), torch.arange(7.0), 3)
