"""Splines against scipy, their continuation beyond the grid against the tangent, and what a layer must be able to learn."""

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from torch import nn

from mri_ds.nn import kan
from mri_ds.nn.kan import OptimizedKANLayer
from mri_ds.nn.spline import Grid, bspline_basis, local_splines


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
    _, values, _ = local_splines(torch.tensor([[[0.0, 0.5]]]), Grid(start=0.0, interval=1.0, size=4, degree=3))
    expected = torch.tensor([[1 / 6, 4 / 6, 1 / 6, 0], [1 / 48, 23 / 48, 23 / 48, 1 / 48]]).T[None, :, None]
    torch.testing.assert_close(values, expected)


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
@pytest.mark.parametrize("knots_given", [False, True])
def test_local_bases_and_slopes_are_scipys(degree, knots_given):
    """What the layer itself uses: the even grid in closed form, and any knots of an input."""
    rng = np.random.default_rng(degree)
    grid = Grid(start=-1.0, interval=0.25, size=9, degree=degree)
    inner = np.sort(rng.uniform(-0.9, 1.0, 8))
    knots = np.r_[[-1.0] * (degree + 1), inner, [1.25] * (degree + 1)] if knots_given else grid.knots().numpy()
    x = rng.uniform(-1, 1.25, 200)
    span, values, slopes = local_splines(torch.tensor(x)[None, :, None], grid, torch.tensor(knots)[None] if knots_given else None)
    places = span[0] + torch.arange(degree + 1)
    whole = torch.zeros(200, grid.num_bases, dtype=torch.float64).scatter(1, places, values[0, ..., 0].T)
    np.testing.assert_allclose(whole.numpy(), BSpline.design_matrix(x, knots, degree).toarray(), rtol=0, atol=1e-12)
    whole = torch.zeros(200, grid.num_bases, dtype=torch.float64).scatter(1, places, slopes[0, ..., 0].T)
    for k in range(grid.num_bases):
        expected = BSpline(knots, np.eye(grid.num_bases)[k], degree).derivative()(x)
        np.testing.assert_allclose(whole[:, k].numpy(), expected, rtol=0, atol=1e-10 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_splines_sum_to_one_and_slopes_to_zero_everywhere(degree):
    x = torch.linspace(-9, 9, 301, dtype=torch.float64)[None, :, None]
    _, values, slopes = local_splines(x, Grid(start=-2.0, interval=0.5, size=8, degree=degree))
    torch.testing.assert_close(values.sum(1), torch.ones_like(x), atol=1e-12, rtol=0)
    torch.testing.assert_close(slopes.sum(1), torch.zeros_like(x), atol=1e-12, rtol=0)


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
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=0, atol=1e-12)


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
    for _ in range(2):  # on the even grid, then on a refined one
        names, values = zip(*layer.named_parameters())
        assert torch.autograd.gradcheck(
            lambda x, *values: torch.func.functional_call(layer, dict(zip(names, values)), (x,)),  # noqa: B023
            (x, *values),
        )
        layer.refine_grid(x[:4].detach(), grid_size=9)


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
    x = torch.randn(1, 64, 4).bfloat16()
    grid = Grid(start=-2.0, interval=0.3, size=13, degree=3)
    for half, whole in zip(local_splines(x, grid), local_splines(x.float(), grid)):
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
    """Of 400 points that were not among the 2000 learned from, u and v up to 0.8."""
    torch.manual_seed(0)
    layers = OptimizedKANLayer(2, 1, grid_range=(-0.8, 0.8), degree=4), OptimizedKANLayer(1, 1, grid_range=(-3, 3), degree=4)
    net = nn.Sequential(*layers).double()
    for layer in net:
        if not with_curves:
            nn.init.zeros_(layer.coefficients).requires_grad_(False)
    inputs = 1.6 * torch.rand(2400, 2, dtype=torch.float64) - 0.8
    truth = (inputs.sum(1) / (1 + inputs.prod(1)))[:, None]

    def loss(rows=slice(0, 2000)):
        return (net(inputs[rows]) - truth[rows]).square().mean()

    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    for grid_size, steps in ((8, 200), (16, 200), (32, 300)) if with_curves else ((8, 150),):  # the shape first, then the details
        if grid_size > 8:
            hidden = net[0](inputs[:2000])
            net[1].refine_grid(hidden, grid_size=grid_size)
            net[0].refine_grid(inputs[:2000], grid_size=grid_size)
        weights = [parameter for parameter in net.parameters() if parameter.requires_grad]
        optimizer = torch.optim.LBFGS(
            weights,
            max_iter=steps,
            max_eval=2 * steps,
            history_size=400,
            line_search_fn="strong_wolfe",
            tolerance_change=0,
            tolerance_grad=0,
        )
        optimizer.step(closure)
    return loss(slice(2000, None)).sqrt().item()


def test_learns_a_relativistic_sum_with_its_curves():
    # (u + v) / (1 + u v) = tanh(atanh u + atanh v): one hidden unit holds it, if its curves can bend as they should.
    with_curves, without = relativistic_sum_rmse(with_curves=True), relativistic_sum_rmse(with_curves=False)
    # In float64, quartic, on a grid over the data that doubles twice: 4.2e-5 on unseen points after seven hundred LBFGS steps.
    assert with_curves < 1e-4 and without > 0.05
    assert without > 100 * with_curves


# ---- finer grids -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_refinement_keeps_the_function_on_the_data_and_off_them(degree):
    """Of steep curves, with data on one side of the grid, across it, and beyond both its ends."""
    torch.manual_seed(degree)
    layer = OptimizedKANLayer(3, 4, degree=degree)
    nn.init.normal_(layer.coefficients)
    data = torch.randn(500, 3) * torch.tensor([0.2, 1.0, 2.0]) + torch.tensor([1.0, 0.0, 0.0])
    assert (data[:, 2] < -2).any() and (data[:, 2] > 2).any()
    x = torch.cat([data, torch.linspace(-9, 9, 300)[:, None].expand(-1, 3)])
    before = layer(x)
    layer.refine_grid(data, grid_size=24)
    assert layer.coefficients.shape == (4, 3, 24 + degree) and layer.coefficients.requires_grad
    torch.testing.assert_close(layer(x), before, rtol=0, atol=1e-4)
    exact, again = layer.double()(x.double()), layer(x.double())
    layer.refine_grid(data, grid_size=40)
    again = layer(x.double())
    torch.testing.assert_close(again, exact, rtol=0, atol=1e-9)


def test_refinement_puts_the_new_knots_where_the_data_are():
    layer = OptimizedKANLayer(2, 1)
    data = torch.stack([torch.full((100,), 1.1), torch.linspace(-2, 2, 100)], dim=1)
    layer.refine_grid(data, grid_size=16)
    edges = layer.knots[:, 3:-3]
    width = edges.diff()
    assert edges[:, 0].tolist() == [-2, -2] and edges[:, -1].tolist() == [2, 2]
    assert width[0].min() == 0.5 / 2**8 and (width[0] == 0.5).sum() == 7  # one interval of eight was halved eight times
    assert width[1].tolist() == [0.25] * 16


def test_a_finer_grid_learns_more_and_its_control_points_take_the_old_ones_place():
    torch.manual_seed(0)
    layer, x = OptimizedKANLayer(1, 1), torch.linspace(-2, 2, 200)[:, None]
    wave, losses = torch.sin(8 * x), []
    optimizer = torch.optim.Adam([{"params": [layer.coefficients], "lr": 0.03}, {"params": layer.linear.parameters()}])
    for grid_size in (8, 32):
        if grid_size > 8:
            old = layer.coefficients
            layer.refine_grid(x, grid_size=grid_size, optimizer=optimizer)
            assert optimizer.param_groups[0]["params"][0] is layer.coefficients and old not in optimizer.state
        for _ in range(300):
            optimizer.zero_grad()
            loss = (layer(x) - wave).square().mean()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.05 and losses[1] < 0.005


def test_a_refined_layer_is_saved_loaded_and_cast_with_its_grid():
    torch.manual_seed(0)
    layer, x = OptimizedKANLayer(3, 2), torch.randn(50, 3)
    layer.refine_grid(x, grid_size=13)
    other = OptimizedKANLayer(3, 2)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    knots = layer.knots.clone()
    layer.bfloat16()
    assert torch.equal(layer.knots, knots) and layer.coefficients.dtype == torch.bfloat16
    torch.testing.assert_close(layer(x.bfloat16()).float(), other(x), atol=0.05, rtol=0.05)


def test_grids_that_cannot_be_refined_are_named():
    layer = OptimizedKANLayer(1, 1)
    with pytest.raises(ValueError, match="no room for the curves as they are over these data: it takes 12"):
        layer.refine_grid(torch.tensor([[-3.0], [3.0]]), grid_size=11)
    with pytest.raises(ValueError, match="not a single finite value"):
        layer.refine_grid(torch.tensor([[float("nan")]]), grid_size=12)


def test_curves_add_up_to_the_layer():
    torch.manual_seed(0)
    layer = OptimizedKANLayer(3, 2)
    for _ in range(2):
        x, y = layer.curves(50)
        assert x.shape == (50, 3) and y.shape == (2, 3, 50)
        assert x[0].tolist() == pytest.approx([-3] * 3) and x[-1].tolist() == pytest.approx([3] * 3)
        torch.testing.assert_close(y.sum(1).T + layer.linear.bias, layer(x), atol=1e-5, rtol=1e-5)
        layer.refine_grid(torch.rand(20, 3), grid_size=12)


def test_bad_grids_are_named():
    with pytest.raises(ValueError, match="increasing grid_range"):
        OptimizedKANLayer(1, 1, grid_range=(1, -1))
    with pytest.raises(ValueError, match="degree 3 needs at least 8 knots, got 7"):
        bspline_basis(torch.zeros(1), torch.arange(7.0), 3)
