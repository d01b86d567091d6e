"""Smooth random fields: the B-spline as scipy has it, its weights, its bounds."""

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline

from mri_ds.augment.spline import smooth_field, spline_weights


def test_smooth_field_is_the_cubic_b_spline():
    control = np.random.default_rng(0).normal(size=(1, 7, 4, 5))
    field = smooth_field(control, (11, 6, 9))[0].double().numpy()
    expected = control[0]
    for axis, length in enumerate((11, 6, 9)):
        count = expected.shape[axis]
        spline = BSpline(np.arange(-3, count + 1), np.moveaxis(expected, axis, 0), 3)  # uniform knots, cells 0 .. count - 3
        expected = np.moveaxis(spline(np.linspace(0, count - 3, length)), 0, axis)
    assert np.allclose(field, expected, atol=1e-6)


def test_spline_weights_are_positive_and_sum_to_one():
    weights = spline_weights(17, cells=3)
    assert weights.shape == (17, 6) and weights.min() >= 0
    assert torch.allclose(weights.sum(dim=1), torch.ones(17, dtype=torch.float64))
    assert weights[0].tolist() == pytest.approx([1 / 6, 4 / 6, 1 / 6, 0, 0, 0])


def test_a_field_is_the_same_for_any_number_of_threads():
    control = np.random.default_rng(0).uniform(-1, 1, size=(3, 7, 7, 7))
    threads = torch.get_num_threads()
    try:
        fields = []
        for num in (1, 2, 3):
            torch.set_num_threads(num)
            fields.append(smooth_field(control, (40, 50, 60)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(fields[0], fields[1]) and torch.equal(fields[0], fields[2])
