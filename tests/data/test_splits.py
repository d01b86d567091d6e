"""Folds: a worked example, and what holds for any subjects and strata."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mri_ds.data.splits import assign_folds

ids = st.lists(st.text(min_size=1, max_size=6), unique=True, min_size=1, max_size=60)
num_folds = st.integers(2, 7)


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[list[str], list[str | int | None]]:
    """Subjects and the stratum of each; strata of several types, as columns with gaps have."""
    subjects = draw(ids)
    strata = st.sampled_from(["none", "few", "many", 0, 1, None])
    return subjects, draw(st.lists(strata, min_size=len(subjects), max_size=len(subjects)))


def even(counts: Counter[int], num_folds: int) -> bool:
    """No fold has two more than another."""
    sizes = [counts[fold] for fold in range(num_folds)]
    return max(sizes) - min(sizes) <= 1


def test_every_second_subject_by_hand() -> None:
    assert assign_folds(["d", "a", "c", "b"], num_folds=2) == {"a": 0, "b": 1, "c": 0, "d": 1}


def test_strata_by_hand() -> None:
    """Few: b d f -> 0 1 2. None goes on from there: a c e g -> 0 1 2 0."""
    strata = ["none", "few", "none", "few", "none", "few", "none"]
    folds = assign_folds(list("abcdefg"), num_folds=3, strata=strata)
    assert folds == {"b": 0, "d": 1, "f": 2, "a": 0, "c": 1, "e": 2, "g": 0}


def test_classes_too_small_for_the_folds_still_spread_out() -> None:
    """Ten classes of two subjects, five folds: started anew, every class would go to folds 0 and 1, and 2 to 4 stay empty."""
    subjects = [f"s{i:02d}" for i in range(20)]
    counts = Counter(assign_folds(subjects, num_folds=5, strata=[i // 2 for i in range(20)]).values())
    assert counts == {fold: 4 for fold in range(5)}


@settings(deadline=None)
@given(ids, num_folds)
def test_fold_0_is_every_nth_of_the_sorted_subjects(subjects: list[str], num_folds: int) -> None:
    folds = assign_folds(subjects, num_folds=num_folds)
    assert folds.keys() == set(subjects)
    for fold in range(num_folds):
        assert sorted(s for s in subjects if folds[s] == fold) == sorted(subjects)[fold::num_folds]


@settings(deadline=None)
@given(cohorts(), num_folds)
def test_folds_are_even_in_all_and_in_every_stratum(cohort: tuple[list[str], list[object]], num_folds: int) -> None:
    subjects, strata = cohort
    folds = assign_folds(subjects, num_folds=num_folds, strata=strata)
    assert folds.keys() == set(subjects)
    assert even(Counter(folds.values()), num_folds)
    for stratum in set(strata):
        assert even(Counter(folds[s] for s, own in zip(subjects, strata) if own == stratum), num_folds)


@settings(deadline=None)
@given(cohorts(), num_folds, st.randoms(use_true_random=False))
def test_the_order_of_the_subjects_does_not_matter(cohort: tuple[list[str], list[object]], num_folds: int, random) -> None:
    subjects, strata = cohort
    pairs = list(zip(subjects, strata))
    random.shuffle(pairs)
    shuffled = assign_folds([s for s, _ in pairs], num_folds=num_folds, strata=[own for _, own in pairs])
    assert shuffled == assign_folds(subjects, num_folds=num_folds, strata=strata)


@settings(deadline=None)
@given(ids, num_folds)
def test_one_stratum_is_none(subjects: list[str], num_folds: int) -> None:
    assert assign_folds(subjects, num_folds=num_folds, strata=["all"] * len(subjects)) == assign_folds(
        subjects, num_folds=num_folds
    )


def test_what_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="num_folds = 1: choose at least 2"):
        assign_folds(["a", "b"], num_folds=1)
    with pytest.raises(ValueError, match="subject 'a' is given twice"):
        assign_folds(["a", "b", "a"])
    with pytest.raises(ValueError, match="2 subjects and 1 strata"):
        assign_folds(["a", "b"], strata=["x"])
