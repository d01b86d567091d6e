"""Balanced epochs: every group as often as the others, every subject of a group as often as its fellows, reproducibly."""

from collections import Counter

import numpy as np
import pytest

from mri_ds.data.index import ShardDataset
from mri_ds.data.order import Order
from mri_ds.data.sampling import balanced, groups_by
from mri_ds.errors import InputError

GROUPS = ((0, 1, 2, 3, 4, 5, 6, 7), (8, 9), (10,))


def test_shares_differ_by_one_place_at_most():
    """11 places among 3 groups: 4, 4 and 3."""
    for epoch in range(5):
        shown = balanced(GROUPS, 11, seed=0, epoch=epoch)
        assert [sum(subject in group for subject in shown.tolist()) for group in GROUPS] == [4, 4, 3]


def test_a_group_is_shown_evenly_over_epochs_without_a_break():
    """Four places an epoch for eight subjects: each once in two epochs, three times in six; two subjects: twice an epoch."""
    six = np.concatenate([balanced(GROUPS, 12, seed=0, epoch=epoch) for epoch in range(6)])
    assert Counter(six.tolist()) == Counter({**{i: 3 for i in range(8)}, 8: 12, 9: 12, 10: 24})
    for epoch in (0, 2, 4):
        two = np.concatenate([balanced(GROUPS, 12, seed=0, epoch=e) for e in (epoch, epoch + 1)])
        assert sorted(s for s in two.tolist() if s < 8) == list(range(8))


def test_epochs_are_functions_of_seed_and_number():
    assert np.array_equal(balanced(GROUPS, 11, seed=2, epoch=5), balanced(GROUPS, 11, seed=2, epoch=5))
    assert len({tuple(balanced(GROUPS, 11, seed=seed, epoch=epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_fewer_places_than_groups_leave_some_out_and_fail_nothing():
    assert sorted(balanced(((0,), (1,), (2,)), 2, seed=0, epoch=0).tolist()) == [0, 1]


def test_an_order_deals_them_into_batches():
    order = Order(shard_sizes=[11], global_batch=4, seed=0, groups=GROUPS)
    shown = [subject for step in range(3) for subject in order.real(step)]
    assert shown == balanced(GROUPS, 11, seed=0, epoch=0).tolist()
    assert [order.slot(p).is_padding for p in range(12)] == [False] * 11 + [True]


@pytest.fixture
def dataset(write_folder, make_sample):
    """lesion is i % 3; 1 and 2 have no age, 3 no tissue, 4 no lesion, 6 nothing at all."""
    lacking = {1: ("age",), 2: ("age",), 3: ("tissue",), 4: ("lesion",), 6: ("age", "tissue", "lesion")}
    return ShardDataset(write_folder([make_sample(i, without=lacking.get(i, ())) for i in range(7)]), "train")


def test_groups_by_class_task_and_site(dataset, monkeypatch):
    assert groups_by(dataset, "none") == ()
    assert groups_by(dataset, "lesion") == ((4, 6), (0, 3), (1,), (2, 5))  # not labelled, none, few, many
    assert groups_by(dataset, "task") == ((0, 1, 2, 4, 5), (0, 1, 2, 3, 5), (0, 3, 4, 5), (6,))
    monkeypatch.setattr(ShardDataset, "site", lambda self, i: "A" if i < 2 else None if i == 3 else "B", raising=False)
    assert groups_by(dataset, "site") == ((3,), (0, 1), (2, 4, 5, 6))


@pytest.mark.parametrize(
    ("balance", "message"),
    [
        ("lesions", "'lesions', which is no classification task.*did you mean 'lesion'"),
        ("age", "'age', which is no classification task"),
        ("site", "the shards name no sites"),
    ],
)
def test_what_cannot_be_balanced_is_told(dataset, balance, message):
    with pytest.raises(InputError, match=message):
        groups_by(dataset, balance)


def test_one_group_is_no_balance(write_folder, make_sample):
    dataset = ShardDataset(write_folder([make_sample(i) for i in (0, 3, 6)]), "train")
    with pytest.raises(InputError, match=r"all subjects of split 'train' are of one lesion.*data.balance=none"):
        groups_by(dataset, "lesion")
