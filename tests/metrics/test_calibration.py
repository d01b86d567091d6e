"""Calibration: worked numbers, scikit-learn (Brier) and MONAI (ECE) as the oracles."""

import numpy as np
import pytest
import torch
from monai.metrics import CalibrationErrorMetric
from sklearn.metrics import brier_score_loss

from mri_ds.metrics.calibration import brier_score, calibration_error


def draw(seed: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = np.concatenate([np.arange(num_classes), rng.integers(0, num_classes, 150)])
    scores = rng.random((len(truth), num_classes)) + np.eye(num_classes)[truth]
    return truth, scores / scores.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("seed", range(2))
def test_equals_scikit_learn_and_monai(seed, num_classes):
    truth, probabilities = draw(seed, num_classes)
    given = probabilities[:, 1] if num_classes == 2 else probabilities
    assert brier_score(truth, probabilities) == pytest.approx(brier_score_loss(truth, given), abs=1e-9)
    confidence, is_right = probabilities.max(axis=1), (probabilities.argmax(axis=1) == truth).astype(float)
    theirs = CalibrationErrorMetric(
        num_bins=15, include_background=True, calibration_reduction="expected", metric_reduction="none"
    )
    theirs(y_pred=torch.from_numpy(confidence)[None, None], y=torch.from_numpy(is_right)[None, None])
    assert calibration_error(truth, probabilities) == pytest.approx(theirs.aggregate().item(), abs=1e-5)


def test_worked_by_hand():
    truth, probabilities = np.array([0, 0, 1, 1]), np.array([[0.8, 0.2], [0.6, 0.4], [0.6, 0.4], [0.1, 0.9]])
    assert brier_score(truth, probabilities) == pytest.approx((0.04 + 0.16 + 0.36 + 0.01) / 4)
    # of two bins all lie in the upper one: confidence (0.8 + 0.6 + 0.6 + 0.9) / 4, three of four right
    assert calibration_error(truth, probabilities, num_bins=2) == pytest.approx(abs(2.9 / 4 - 3 / 4))


def test_nobody_and_wrong_shapes():
    nobody = np.zeros(0, dtype=int), np.zeros((0, 2))
    assert np.isnan(brier_score(*nobody)) and np.isnan(calibration_error(*nobody))
    with pytest.raises(ValueError, match="3 subjects"):
        brier_score(np.zeros(3, dtype=int), np.zeros((2, 2)))
