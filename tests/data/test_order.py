"""The order of epochs: permutations, windows of shards, padding, what a checkpoint keeps and what it refuses."""

import copy
import json
import pickle

import numpy as np
import pytest

from mri_ds.config import DataConfig
from mri_ds.data.index import ShardDataset
from mri_ds.data.order import Order, chain, make_order, shuffled
from mri_ds.errors import InputError

SIZES = [5, 1, 7, 3, 4]  # 20 subjects
SHARD_OF = np.repeat(np.arange(5), SIZES)


def order(**changes) -> Order:
    return Order(**{"shard_sizes": SIZES, "global_batch": 6, "seed": 3} | changes)


def test_an_epoch_depends_on_seed_and_number_only():
    assert np.array_equal(shuffled(SIZES, seed=3, epoch=2), shuffled([20], seed=3, epoch=2))
    orders = {tuple(shuffled(SIZES, seed=seed, epoch=epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16 and all(sorted(each) == list(range(20)) for each in orders)


def test_every_subject_is_as_likely_at_every_place():
    """2,000 epochs of 5: each of 25 cells is expected 400 times, standard deviation 18."""
    counts = np.zeros((5, 5))
    for epoch in range(2000):
        counts[np.arange(5), shuffled([2, 3], seed=0, epoch=epoch)] += 1
    assert abs(counts - 400).max() < 5 * 18


@pytest.mark.parametrize("window", [1, 2, 3, 4])
def test_a_window_mixes_so_many_shards_and_no_more(window):
    for epoch in range(10):
        shown = shuffled(SIZES, seed=0, epoch=epoch, window=window)
        assert sorted(shown) == list(range(20))
        shards = SHARD_OF[shown]
        started: list[int] = []
        for place, shard in enumerate(shards):
            if shard not in started:
                started.append(shard)
            open_ones = [s for s in started if s in shards[place:]]
            assert len(open_ones) <= window, "a reader that keeps `window` shards would have to come back to one"
    assert len({tuple(shuffled(SIZES, seed=0, epoch=epoch, window=window)) for epoch in range(5)}) == 5


def test_slots_by_hand():
    """20 subjects in batches of 6: four steps, the last with two subjects and four places of padding that repeat them."""
    it = order()
    assert it.steps_per_epoch == 4
    last = [it.slot(p) for p in range(18, 24)]
    assert [slot.is_padding for slot in last] == [False] * 2 + [True] * 4
    assert [slot.place for slot in last] == list(range(18, 24))
    assert [slot.subject for slot in last] == 3 * it.real(3) and len(it.real(3)) == 2
    after = it.slot(24)
    assert (after.epoch, after.place, after.is_padding, after.subject) == (1, 0, False, it.epoch(1)[0])


@pytest.mark.parametrize("global_batch", [1, 3, 6, 20, 21, 50])
def test_real_subjects_of_an_epochs_steps_are_all_subjects(global_batch):
    it = order(global_batch=global_batch)
    for epoch in range(3):
        steps = range(epoch * it.steps_per_epoch, (epoch + 1) * it.steps_per_epoch)
        shown = [subject for step in steps for subject in it.real(step)]
        assert shown == it.epoch(epoch).tolist() and sorted(shown) == list(range(20))
        slots = [it.slot(p) for p in range(steps.start * global_batch, steps.stop * global_batch)]
        assert [slot.subject for slot in slots if not slot.is_padding] == shown


def test_the_dice_of_all_places_differ_and_stay():
    it = order()
    draws = [it.dice(it.slot(p)).integers(2**62) for p in range(200)]
    assert len(set(draws)) == 200
    assert draws == [order().dice(order().slot(p)).integers(2**62) for p in range(200)]


def test_jumping_about_gives_what_walking_gives():
    it, walked = order(), [order().slot(p) for p in range(24 * 12)]
    for p in np.random.default_rng(0).permutation(len(walked)):
        assert it.slot(int(p)) == walked[p]
    assert len(it._epochs) <= 4


def test_workers_get_it_by_copy():
    it = order(window=2)
    assert pickle.loads(pickle.dumps(it)).real(7) == copy.deepcopy(it).real(7) == it.real(7)


def test_the_state_is_a_few_integers_and_survives_json():
    state = order(identity=5).state(9)
    assert state == {"step": 9, "epoch": 2, "batch": 1, "seed": 3, "global_batch": 6, "num_samples": 20, "identity": 5}
    order(identity=5).check(json.loads(json.dumps(state)))
    order(identity=5).check({})  # of a checkpoint before there was a state


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 4}, "seed is 4 and was 3"),
        ({"global_batch": 12}, "global_batch is 12 and was 6"),
        ({"shard_sizes": [21]}, "num_samples is 21 and was 20"),
        ({"identity": 6}, "the shards hold other subjects, or in another order"),
    ],
)
def test_another_order_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        order(**{"identity": 5} | changes).check(order(identity=5).state(9))


def test_the_identity_of_a_dataset_is_its_subjects_and_how_they_are_shown(write_folder, make_sample):
    samples = [make_sample(i) for i in range(5)]
    one = ShardDataset(write_folder(samples, name="one"), "train")
    same = ShardDataset(write_folder(samples, per_shard=2, name="same"), "train")
    other = ShardDataset(write_folder(samples[::-1], name="other"), "train")

    def identity(dataset, **data):
        return make_order(dataset, DataConfig(**data), seed=0, global_batch=2).identity

    assert identity(one) == identity(same) and 0 < identity(one) < 2**56
    others = [identity(other), identity(one, balance="lesion"), identity(one, shuffle_shards=1)]
    assert len({identity(one), *others}) == 4
    with pytest.raises(InputError, match="exclude each other"):
        identity(one, balance="lesion", shuffle_shards=1)


def test_a_digest_tells_batches_and_their_order_apart():
    def digest(*batches):
        value = ""
        for batch in batches:
            value = chain(value, batch)
        return value

    told = [digest(["a", "b"], ["c"]), digest(["a"], ["b", "c"]), digest(["b", "a"], ["c"]), digest(["c"], ["a", "b"]), digest()]
    assert len(set(told)) == 5 and digest(["a", "b"], ["c"]) == chain(chain("", ["a", "b"]), ["c"])
