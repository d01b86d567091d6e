"""Sets and intervals hold the truth as often as they say, on cohorts whose truth is known; and small cases by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from mri_ds.inference import conformal
from mri_ds.inference.quality import fit_line, line_errors
from mri_ds.inference.temperature import fit_temperature

POINTS = 0.03  # the promise: within three of nominal
NUM_FIT, NUM_NEW, NUM_COHORTS = 150, 400, 40
LEVELS = [0.8, 0.9, 0.95]


def test_quantile_by_hand():
    scores = np.array([5.0, 1, 4, 2, 3, 9, 8, 7, 6])  # (9 + 1) x 0.9 = 9: the largest
    assert conformal.quantile(scores, 0.9) == 9 and conformal.quantile(scores, 0.5) == 5
    assert conformal.quantile(scores, 0.91) == math.inf and conformal.quantile(np.zeros(0), 0.5) == math.inf
    with pytest.raises(ValueError, match=r"coverage 90"):
        conformal.quantile(scores, 90)


@pytest.mark.parametrize("num, coverage", [(19, 0.9), (50, 0.8), (99, 0.95), (7, 0.5)])
def test_quantile_has_its_exact_coverage(num, coverage):
    """The k-th smallest of n uniform scores is Beta(k, n + 1 - k): its mean, k / (n + 1), is the coverage."""
    dice = np.random.default_rng(num)
    covered = np.mean([dice.uniform() <= conformal.quantile(dice.uniform(size=num), coverage) for _ in range(20_000)])
    k = math.ceil(round((num + 1) * coverage, 9))
    assert covered == pytest.approx(stats.beta(k, num + 1 - k).mean(), abs=4 * math.sqrt(0.25 / 20_000))
    assert covered >= coverage - 4 * math.sqrt(0.25 / 20_000)


@pytest.mark.parametrize("coverage", LEVELS)
def test_sets_of_classes(coverage):
    """A network twice as sure as it should be: calibrated by temperature first, as `calibrate` does."""
    dice, covered, sizes = np.random.default_rng(1), [], []
    for _ in range(NUM_COHORTS):
        logits = dice.normal(0, 1.5, (NUM_FIT + NUM_NEW, 4))
        chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        truth = (dice.uniform(size=(len(logits), 1)) > chances.cumsum(axis=1)).sum(axis=1)
        sure = 2 * logits
        told = sure / fit_temperature(sure[:NUM_FIT], truth[:NUM_FIT])
        p = np.exp(told) / np.exp(told).sum(axis=1, keepdims=True)
        sets = p[NUM_FIT:] >= conformal.class_threshold(p[:NUM_FIT], truth[:NUM_FIT], coverage)
        covered.append(sets[np.arange(NUM_NEW), truth[NUM_FIT:]].mean())
        sizes.append(sets.sum(axis=1).mean())
    assert abs(np.mean(covered) - coverage) <= POINTS
    assert 1 < np.mean(sizes) < 4  # neither all classes nor fewer than it takes


@pytest.mark.parametrize("coverage", LEVELS)
def test_intervals_of_numbers(coverage):
    """Errors that are not Gaussian, and biased."""
    dice, covered = np.random.default_rng(2), []
    for _ in range(NUM_COHORTS):
        truth = dice.uniform(20, 80, NUM_FIT + NUM_NEW)
        prediction = truth + 2 + 3 * dice.standard_t(3, len(truth))
        half = conformal.half_width(truth[:NUM_FIT], prediction[:NUM_FIT], coverage)
        covered.append((np.abs(truth - prediction)[NUM_FIT:] <= half).mean())
    assert abs(np.mean(covered) - coverage) <= POINTS


@pytest.mark.parametrize("coverage", LEVELS)
def test_intervals_of_volumes(coverage):
    """Structures from 0.1 to 10 mL, some absent, errors that grow with size."""
    dice, covered, relative_widths = np.random.default_rng(3), [], []
    for _ in range(NUM_COHORTS):
        truth = np.exp(dice.uniform(np.log(0.1), np.log(10), NUM_FIT + NUM_NEW)) * (dice.uniform(size=NUM_FIT + NUM_NEW) > 0.1)
        prediction = np.maximum(0, truth * np.exp(dice.normal(0, 0.2, len(truth))) + dice.normal(0, 0.05, len(truth)))
        relative, offset = conformal.volume_scale(truth[:NUM_FIT], prediction[:NUM_FIT], coverage)
        bounds = np.array([conformal.volume_interval_ml(v, relative, offset) for v in prediction[NUM_FIT:]])
        assert (bounds[:, 0] >= 0).all()
        covered.append(((bounds[:, 0] <= truth[NUM_FIT:]) & (truth[NUM_FIT:] <= bounds[:, 1])).mean())
        relative_widths.append(relative)
    assert abs(np.mean(covered) - coverage) <= POINTS and np.mean(relative_widths) < 1


@pytest.mark.parametrize("coverage", LEVELS)
def test_regions_of_structures(coverage):
    """Per subject, 60 true voxels of one common difficulty: does the region hold 95 % of them as often as it says?"""
    dice, covered = np.random.default_rng(4), []
    for _ in range(NUM_COHORTS):
        ease = dice.normal(2, 1, (NUM_FIT + NUM_NEW, 1))
        p = 1 / (1 + np.exp(-(ease + dice.normal(0, 1, (len(ease), 60)))))
        scores = np.array([conformal.region_score(one, 0.95) for one in p[:NUM_FIT]])
        held = (p[NUM_FIT:] >= conformal.region_threshold(scores, coverage)).mean(axis=1)
        covered.append((held >= 0.95).mean())
    assert abs(np.mean(covered) - coverage) <= POINTS


@pytest.mark.parametrize("coverage", LEVELS)
def test_intervals_of_expected_dice(coverage):
    """Soft Dice that flatters, Dice that scatters more where it is low, some not known: a line and what it errs by."""
    dice, covered, widths = np.random.default_rng(6), [], []
    for _ in range(NUM_COHORTS):
        soft = dice.beta(8, 2, NUM_FIT + NUM_NEW)
        real = np.clip(1.3 * soft - 0.35 + dice.normal(0, 0.02 + 0.1 * (1 - soft)), 0, 1)
        soft[:5] = np.nan
        line = fit_line(soft[:NUM_FIT], real[:NUM_FIT])
        half = conformal.quantile(line_errors(soft[:NUM_FIT], real[:NUM_FIT]), coverage)
        told = np.array([line.at(x) for x in soft[NUM_FIT:]])
        covered.append((np.abs(told - real[NUM_FIT:]) <= half).mean())
        widths.append(half)
    assert abs(np.mean(covered) - coverage) <= POINTS and 0 < np.mean(widths) < 0.15


def test_line_errors_by_hand():
    """Each from the line through the others; of two others there is none, and soft Dice speaks for itself."""
    x, y = np.array([0.2, 0.4, 0.6, 0.8, 0.5]), np.array([0.3, 0.4, 0.5, 0.9, 0.1])
    line = stats.linregress(x[:4], y[:4])
    errors = line_errors(x, y)
    assert errors[4] == pytest.approx(abs(line.slope * 0.5 + line.intercept - 0.1)) and len(errors) == 5
    few = line_errors(np.array([0.2, np.nan, 0.4, 0.8]), np.array([0.3, 0.5, 0.4, 0.9]))
    assert few.tolist() == pytest.approx([0.1, 0.0, 0.1])


def test_too_few_subjects_promise_nothing():
    truth = np.array([0, 1, 1])
    assert conformal.class_threshold(np.eye(2)[truth], truth, 0.9) == 0.0  # every class
    assert conformal.half_width(truth * 1.0, truth * 2.0, 0.9) == math.inf
    assert conformal.volume_scale(truth * 1.0, truth * 2.0, 0.9)[0] == math.inf
