"""Overlap: worked numbers, MONAI as the oracle, and every kind of empty mask."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.metrics import compute_dice, compute_iou

from mri_ds.metrics.overlap import dice, dice_per_class, jaccard


def test_worked_by_hand():
    truth = np.zeros((4, 4, 4), dtype=bool)
    prediction = truth.copy()
    truth[0] = True  # 16 voxels
    prediction[0, :, :2] = True  # 8, all inside
    prediction[1, 0, :] = True  # 4, all outside
    assert dice(truth, prediction) == 2 * 8 / (16 + 12)
    assert jaccard(truth, prediction) == 8 / 20


def test_equals_monai():
    rng = np.random.default_rng(0)
    for density in (0.02, 0.3, 0.9):
        truth, prediction = rng.random((2, 9, 8, 7)) < density
        one_hot = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, truth)]
        assert dice(truth, prediction) == pytest.approx(compute_dice(*one_hot).item(), abs=1e-6)
        assert jaccard(truth, prediction) == pytest.approx(compute_iou(*one_hot).item(), abs=1e-6)


def test_empty_masks():
    empty, full = np.zeros((3, 3, 3), dtype=bool), np.ones((3, 3, 3), dtype=bool)
    for metric in (dice, jaccard):
        assert np.isnan(metric(empty, empty))
        assert metric(full, empty) == 0.0  # missed
        assert metric(empty, full) == 0.0  # seen where there is none
        assert metric(full, full) == 1.0


@given(arrays(np.int16, (2, 4, 3, 3), elements=st.integers(0, 3)))
@settings(max_examples=30, deadline=None)
def test_per_class_is_dice_of_each_class(labels):
    expected = [dice(labels[0] == k, labels[1] == k) for k in range(4)]
    np.testing.assert_array_equal(dice_per_class(labels[0], labels[1], num_classes=4), expected)


def test_wrong_labels_are_named():
    with pytest.raises(ValueError, match=r"prediction holds classes 0\.\.3, outside 0\.\.2"):
        dice_per_class(np.array([0, 1]), np.array([0, 3]), num_classes=3)
    with pytest.raises(ValueError, match="differ in shape"):
        dice(np.ones((2, 2), dtype=bool), np.ones((2, 3), dtype=bool))
