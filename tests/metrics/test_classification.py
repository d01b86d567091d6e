"""Classification metrics: worked numbers, and scikit-learn as the oracle."""

import numpy as np
import pytest
from sklearn import metrics as sk

from mri_ds.metrics.classification import (
    average_precision_ovr,
    balanced_accuracy,
    confusion_matrix,
    matthews_correlation,
    roc_auc_ovr,
)


def draw(seed: int, num_subjects: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Truth and probabilities; rounded, so that there are ties."""
    rng = np.random.default_rng(seed)
    truth = np.concatenate([np.arange(num_classes), rng.integers(0, num_classes, num_subjects - num_classes)])
    scores = np.round(rng.random((num_subjects, num_classes)) + 0.6 * np.eye(num_classes)[truth], 1) + 0.1
    return truth, scores / scores.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("num_classes", [2, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_equals_scikit_learn(seed, num_classes):
    truth, probabilities = draw(seed, 60, num_classes)
    predicted = probabilities.argmax(axis=1)
    assert balanced_accuracy(truth, predicted, num_classes) == pytest.approx(sk.balanced_accuracy_score(truth, predicted))
    np.testing.assert_array_equal(confusion_matrix(truth, predicted, num_classes), sk.confusion_matrix(truth, predicted))
    one_vs_rest = [sk.roc_auc_score(truth == k, probabilities[:, k]) for k in range(num_classes)]
    assert roc_auc_ovr(truth, probabilities) == pytest.approx(np.mean(one_vs_rest))
    if num_classes > 2:  # scikit-learn's own name for it does not take two columns
        expected = sk.roc_auc_score(truth, probabilities, multi_class="ovr", average="macro")
        assert roc_auc_ovr(truth, probabilities) == pytest.approx(expected)


def test_auc_worked_by_hand():
    # positives score 0.8 and 0.3, negatives 0.3 and 0.1: of four pairs three are right and one is a tie
    scores = np.array([0.8, 0.3, 0.3, 0.1])
    assert roc_auc_ovr(np.array([1, 1, 0, 0]), np.stack([1 - scores, scores], axis=1)) == 3.5 / 4


def test_the_constant_predictor_is_worth_nothing():
    truth = np.array([0] * 8 + [1] * 2 + [2])
    assert balanced_accuracy(truth, np.zeros_like(truth), 3) == pytest.approx(1 / 3)  # although 73 % are right
    assert roc_auc_ovr(truth, np.tile([0.7, 0.2, 0.1], (11, 1))) == 0.5


def test_classes_that_do_not_occur():
    truth = np.array([0, 0, 2, 2])
    predicted = np.array([0, 1, 2, 2])
    assert balanced_accuracy(truth, predicted, 3) == 0.75  # recalls 0.5 and 1; class 1 has none
    probabilities = np.eye(3)[predicted] * 0.8 + 0.1
    assert roc_auc_ovr(truth, probabilities) == pytest.approx((0.75 + 1.0) / 2)  # class 1 has no curve
    assert np.isnan(roc_auc_ovr(np.zeros(3, dtype=int), np.full((3, 2), 0.5)))


def test_scores_that_are_no_numbers_have_no_auc():
    assert np.isnan(roc_auc_ovr(np.array([0, 1, 1]), np.full((3, 2), np.nan)))
    assert np.isnan(balanced_accuracy(np.zeros(0, dtype=int), np.zeros(0, dtype=int), 2))


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"truth holds classes 0\.\.5"):
        confusion_matrix(np.array([0, 5]), np.array([0, 1]), 3)
    with pytest.raises(ValueError, match="4 subjects"):
        roc_auc_ovr(np.zeros(4, dtype=int), np.zeros((3, 2)))


@pytest.mark.parametrize("num_classes", [2, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_average_precision_and_mcc_equal_scikit_learn(seed, num_classes):
    truth, probabilities = draw(seed, 60, num_classes)
    predicted = probabilities.argmax(axis=1)
    assert matthews_correlation(truth, predicted, num_classes) == pytest.approx(sk.matthews_corrcoef(truth, predicted))
    one_vs_rest = [sk.average_precision_score(truth == k, probabilities[:, k]) for k in range(num_classes)]
    assert average_precision_ovr(truth, probabilities) == pytest.approx(np.mean(one_vs_rest))


def test_average_precision_and_mcc_where_they_are_worth_nothing_or_undefined():
    truth = np.array([0] * 8 + [1] * 2)
    constant = np.tile([0.8, 0.2], (10, 1))
    assert matthews_correlation(truth, np.zeros_like(truth), 2) == sk.matthews_corrcoef(truth, np.zeros_like(truth)) == 0.0
    assert average_precision_ovr(truth, constant) == pytest.approx((0.8 + 0.2) / 2)  # the share of each class
    nobody = np.zeros(0, dtype=int)
    assert np.isnan(matthews_correlation(nobody, nobody, 2)) and np.isnan(average_precision_ovr(nobody, np.zeros((0, 2))))
    assert average_precision_ovr(np.zeros(3, dtype=int), np.full((3, 2), 0.5)) == 1.0  # class 1 does not occur
    with pytest.raises(ValueError, match="4 subjects"):
        average_precision_ovr(np.zeros(4, dtype=int), np.zeros((3, 2)))
