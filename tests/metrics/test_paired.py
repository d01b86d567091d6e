"""Paired tests against scipy and statsmodels, and DeLong's against all pairs of subjects counted one by one."""

import itertools

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from mri_ds.metrics import paired
from mri_ds.metrics.classification import roc_auc_ovr
from mri_ds.metrics.delong import delong

RNG = np.random.default_rng(0)
SAMPLES = [RNG.normal(shift, 1, n) for n in (5, 12, 60, 200) for shift in (0, 0.4)]
WITH_TIES = [np.array([1.0, 1, -1, 2, 0, 3, 0, -2, 2, 2]), np.round(RNG.normal(0.3, 1, 80), 1)]


@pytest.mark.parametrize("differences", SAMPLES + WITH_TIES, ids=len)
def test_wilcoxon(differences):
    expected = stats.wilcoxon(differences, zero_method="wilcox").pvalue
    assert paired.wilcoxon_p(differences) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("differences", [s for s in SAMPLES if len(s) <= 12] + WITH_TIES[:1], ids=len)
def test_permutations_of_few_are_all_of_them(differences):
    expected = stats.permutation_test(
        (differences, np.zeros_like(differences)),
        lambda x, y, axis: (x - y).mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    assert paired.sign_flip_p(differences) == pytest.approx(expected.pvalue, rel=1e-9)


@pytest.mark.parametrize("differences", [s for s in SAMPLES if len(s) > 12], ids=len)
def test_permutations_of_many_are_a_sample(differences):
    expected = stats.permutation_test(
        (differences, np.zeros_like(differences)),
        lambda x, y, axis: (x - y).mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
        batch=2000,
        rng=np.random.default_rng(1),
    ).pvalue
    got = paired.sign_flip_p(differences, num_permutations=20_000)
    assert got == pytest.approx(expected, abs=5 * np.sqrt(2 * max(expected * (1 - expected), 1e-4) / 20_000))
    assert got == paired.sign_flip_p(differences, num_permutations=20_000) and got > 0


@pytest.mark.parametrize("only_a, only_b", [(0, 0), (0, 7), (12, 3), (5, 5), (40, 61)])
def test_mcnemar(only_a, only_b):
    a = np.array([True] * only_a + [False] * only_b + [True] * 9 + [False] * 4)
    b = np.array([False] * only_a + [True] * only_b + [True] * 9 + [False] * 4)
    expected = mcnemar([[9, only_a], [only_b, 4]], exact=True).pvalue
    assert paired.mcnemar_p(a, b) == pytest.approx(expected, rel=1e-9)
    g, low, high = paired.mcnemar_effect(a, b)
    assert -0.5 <= low <= g <= high <= 0.5 and g == pytest.approx(only_b / (only_a + only_b) - 0.5 if only_a + only_b else 0)


@pytest.mark.parametrize("count", [1, 2, 9, 40])
def test_holm(count):
    p = RNG.uniform(0, 0.2, count) ** 2
    np.testing.assert_allclose(paired.holm(p.tolist()), multipletests(p, method="holm")[1], rtol=1e-12)


@pytest.mark.parametrize("differences", SAMPLES[:6] + WITH_TIES, ids=len)
def test_rank_biserial_is_the_statistic_of_wilcoxon(differences):
    """r = (W+ - W-) / (W+ + W-), and scipy tells the smaller of the two."""
    moved = differences[differences != 0]
    total = len(moved) * (len(moved) + 1) / 2
    smaller = stats.wilcoxon(moved).statistic
    r = paired.rank_biserial(differences)
    assert abs(r) == pytest.approx(1 - 2 * smaller / total) and np.sign(r) in (
        0,
        np.sign(stats.rankdata(abs(moved)) @ np.sign(moved)),
    )


def test_no_difference_at_all_is_no_evidence():
    nothing = np.zeros(8)
    assert paired.wilcoxon_p(nothing) == paired.sign_flip_p(nothing) == paired.mcnemar_p(nothing > 0, nothing > 0) == 1.0
    assert paired.rank_biserial(nothing) == 0 and paired.rank_biserial_interval(nothing) == (0, 0)


def test_intervals_cover_the_truth_as_often_as_they_say():
    """400 samples of 40 subjects with a true mean of 0.3; the binomial's own deviation is 1.1 points."""
    dice = np.random.default_rng(5)
    found = [paired.mean_interval(dice.normal(0.3, 1, 40), num_resamples=400, seed=i) for i in range(400)]
    assert 0.91 <= np.mean([low <= 0.3 <= high for low, high in found]) <= 0.98
    sample = dice.normal(0.3, 1, 40)
    expected = stats.bootstrap((sample,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(0))
    np.testing.assert_allclose(paired.mean_interval(sample, num_resamples=20_000), expected.confidence_interval, atol=0.01)


# ---- DeLong --------------------------------------------------------------------------------------------------------


def slow_delong(is_positive, scores_a, scores_b):
    """The paper's equations 4 to 8 with every pair of a positive and a negative looked at: areas and p."""
    areas, tens, ones = [], [], []
    for scores in (scores_a, scores_b):
        psi = np.array([[1.0 if x > y else 0.5 if x == y else 0.0 for y in scores[~is_positive]] for x in scores[is_positive]])
        areas.append(psi.mean())
        tens.append(psi.mean(axis=1) - psi.mean())
        ones.append(psi.mean(axis=0) - psi.mean())
    m, n = len(tens[0]), len(ones[0])
    s = np.zeros((2, 2))
    for r, q in itertools.product(range(2), range(2)):
        s[r, q] = sum(tens[r] * tens[q]) / (m - 1) / m + sum(ones[r] * ones[q]) / (n - 1) / n
    contrast = np.array([-1, 1])
    z = contrast @ areas / np.sqrt(contrast @ s @ contrast)
    return areas, 2 * stats.norm.sf(abs(z))


@pytest.mark.parametrize("num, decimals", [(12, 3), (40, 1), (150, 3)])
def test_delong_equals_all_pairs(num, decimals):
    dice = np.random.default_rng(num)
    truth = dice.uniform(size=num) < 0.4
    latent = truth + dice.normal(0, 1, num)
    a, b = (np.round(latent + dice.normal(0, spread, num), decimals) for spread in (0.5, 1.5))  # 1 decimal: many ties
    got = delong(truth, a, b)
    (area_a, area_b), p = slow_delong(truth, a, b)
    assert (got.a, got.b, got.p) == (pytest.approx(area_a), pytest.approx(area_b), pytest.approx(p, rel=1e-8))
    assert got.a == pytest.approx(roc_auc_ovr(truth.astype(int), np.stack([-a, a], axis=1)))
    back = delong(truth, b, a)
    assert back.p == pytest.approx(got.p) and back.difference == pytest.approx(-got.difference)
    assert (got.low <= 0 <= got.high) == (got.p >= 0.05)


def test_delong_by_hand():
    """Positives 3, 1 and negatives 2, 0. a: areas 3/4; its placements 1, 1/2 and 1/2, 1. b orders all rightly: no spread."""
    truth = np.array([True, True, False, False])
    result = delong(truth, np.array([3.0, 1, 2, 0]), np.array([3.0, 2, 1, 0]))
    assert (result.a, result.b, result.difference) == (0.75, 1.0, 0.25)
    assert result.p == pytest.approx(2 * stats.norm.sf(0.25 / np.sqrt(0.125 / 2 + 0.125 / 2)))


def test_delong_needs_two_of_each_and_no_difference_is_no_evidence():
    truth = np.array([True, False, False])
    with pytest.raises(ValueError, match="1 positive and 2 negative"):
        delong(truth, np.zeros(3), np.zeros(3))
    truth = np.array([True, True, False, False])
    assert delong(truth, np.arange(4.0), np.exp(np.arange(4.0))).p == 1.0


# ---- several scans of one patient -------------------------------------------------------------------------------------


def slow_obuchowski(is_positive, scores_a, scores_b, patients):
    """Obuchowski 1997 pair by pair: covariances of patients' sums of placements, those of positives with negatives included."""
    names = list(dict.fromkeys(patients))
    areas, tens, ones = [], [], []
    for scores in (scores_a, scores_b):
        pos, neg = [np.flatnonzero(kind) for kind in (is_positive, ~is_positive)]
        psi = {(i, j): 1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0 for i in pos for j in neg}
        area = sum(psi.values()) / len(psi)
        areas.append(area)
        tens.append([sum(sum(psi[i, j] for j in neg) / len(neg) - area for i in pos if patients[i] == n) for n in names])
        ones.append([sum(sum(psi[i, j] for i in pos) / len(pos) - area for j in neg if patients[j] == n) for n in names])
    m, n = is_positive.sum(), (~is_positive).sum()
    of_pos, of_neg = (len({patients[i] for i in np.flatnonzero(kind)}) for kind in (is_positive, ~is_positive))
    s = np.zeros((2, 2))
    for r, q in itertools.product(range(2), range(2)):
        s[r, q] += of_pos / ((of_pos - 1) * m) * sum(x * y for x, y in zip(tens[r], tens[q])) / m
        s[r, q] += of_neg / ((of_neg - 1) * n) * sum(x * y for x, y in zip(ones[r], ones[q])) / n
        for one, other in ((r, q), (q, r)):
            s[r, q] += len(names) / (len(names) - 1) * sum(x * y for x, y in zip(tens[one], ones[other])) / (m * n)
    contrast = np.array([-1, 1])
    return 2 * stats.norm.sf(abs(contrast @ areas) / np.sqrt(contrast @ s @ contrast))


@pytest.mark.parametrize("seed", range(4))
def test_delong_of_patients_equals_obuchowski_s_sums(seed):
    rng = np.random.default_rng(seed)
    patients = rng.permutation(np.repeat(np.arange(15), rng.integers(1, 5, 15)))
    truth = rng.uniform(size=len(patients)) < 0.5  # a patient may be of both kinds
    latent = truth + rng.normal(size=15)[patients]
    a, b = (np.round(latent + rng.normal(0, 1, len(patients)), 1) for _ in range(2))
    expected = slow_obuchowski(truth, a, b, patients.tolist())
    assert delong(truth, a, b, patients.tolist()).p == pytest.approx(expected, rel=1e-8)
    each = [str(i) for i in range(len(patients))]
    assert delong(truth, a, b, each) == delong(truth, a, b)
    assert slow_obuchowski(truth, a, b, each) == pytest.approx(delong(truth, a, b).p, rel=1e-8)


def test_one_scan_of_each_patient_is_as_without_patients():
    differences, each = WITH_TIES[1], list(range(80))
    right = RNG.uniform(size=(2, 80)) < 0.6
    assert paired.mean_interval(differences, each) == paired.mean_interval(differences)
    assert [x.tolist() for x in paired.of_patients(differences, each)] == [differences.tolist(), [1.0] * 80]
    assert paired.mcnemar_p(*right, each) == paired.mcnemar_p(*right)
    assert paired.mcnemar_effect(*right, each) == paired.mcnemar_effect(*right)


def test_of_patients_by_hand():
    """Ill twice, well once: the third patient's scans cancel out, and what is left are two signs, alike."""
    a, b = np.array([0, 0, 1, 0, 1]) > 0, np.array([1, 1, 0, 1, 1]) > 0
    patients = ["p", "p", "r", "r", "s"]
    assert paired.mcnemar_p(a, b, patients) == paired.sign_flip_p(np.array([2.0, 0.0, 0.0])) == 1.0
    assert paired.mcnemar_p(a, b, ["p", "p", "r", "q", "s"]) == paired.sign_flip_p(np.array([2.0, -1, 1, 0])) == 0.75
    g, low, high = paired.mcnemar_effect(a, b, patients)
    assert g == 0.25 and -0.5 <= low < g < high <= 0.5
    sums = np.array([5.0, -1.0, 2.0])
    drawn = np.random.default_rng(0).integers(0, 3, (2000, 3))
    expected = np.quantile(sums[drawn].sum(axis=1) / np.array([2.0, 1, 3])[drawn].sum(axis=1), [0.025, 0.975])
    found = paired.mean_interval(np.array([2.0, 3, -1, 1, 1, 0]), ["a", "a", "b", "c", "c", "c"])
    assert found == pytest.approx(tuple(expected))


NUM_PATIENTS, NUM_SCANS, NUM_COHORTS = 40, 4, 200


def null_cohort(rng):
    """Two models that are equally good over all patients, and each a little better on patients of its own; four scans each."""
    whose = np.repeat(np.arange(NUM_PATIENTS), NUM_SCANS)
    both = rng.normal(0, 1, NUM_PATIENTS)[whose]
    own = rng.normal(0, 0.7, (2, NUM_PATIENTS))[:, whose] + rng.normal(0, 0.5, (2, len(whose)))
    return whose.tolist(), both, own, rng.uniform(size=NUM_PATIENTS)[whose] < 0.5


TESTS = {
    "wilcoxon": lambda whose, both, own, ill: paired.wilcoxon_p(np.divide(*paired.of_patients(own[1] - own[0], whose))),
    "sign flip": lambda whose, both, own, ill: paired.sign_flip_p(
        paired.of_patients(own[1] - own[0], whose)[0], num_permutations=199
    ),
    "mcnemar": lambda whose, both, own, ill: paired.mcnemar_p(*(both + own > 0), whose),
    "delong": lambda whose, both, own, ill: delong(ill, ill + both + own[0], ill + both + own[1], whose).p,
}


@pytest.mark.parametrize("name", TESTS)
def test_repeated_scans_reject_a_true_null_no_more_often_than_they_say(name):
    """At most 5 % of 200 cohorts, within the binomial's 99.9 %; taken for independent, scans reject far more."""
    rng, rejected = np.random.default_rng(9), {"patients": 0, "scans": 0}
    for _ in range(NUM_COHORTS):
        whose, *rest = null_cohort(rng)
        for kind, given in (("patients", whose), ("scans", list(range(len(whose))))):
            rejected[kind] += TESTS[name](given, *rest) <= 0.05
    most = stats.binom(NUM_COHORTS, 0.05).ppf(0.999)
    assert rejected["patients"] <= most < rejected["scans"], rejected
    assert rejected["patients"] >= 0.01 * NUM_COHORTS  # nor never
