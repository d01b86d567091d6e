"""What counts as a spike."""

import random

from mri_ds.training.spikes import LEAST, SpikeWatch


def falling(steps, seed=0):
    rng = random.Random(seed)
    return [2 - step / 100 + rng.gauss(0, 0.05) for step in range(steps)]


def test_a_falling_noisy_loss_has_none():
    for seed in range(20):
        watch = SpikeWatch(8.0)
        assert not any(map(watch.is_spike, falling(150, seed)))


def test_a_jump_is_one_and_stays_one():
    """Also below zero, where learned task weights lead."""
    for shift in (0, -5):
        watch = SpikeWatch(8.0)
        assert not any(map(watch.is_spike, [loss + shift for loss in falling(60)]))
        assert [watch.is_spike(loss + shift) for loss in (4.0, 4.2, 1.4, 3.9)] == [True, True, False, True]


def test_off_or_too_early_there_is_none():
    off, young = SpikeWatch(0.0), SpikeWatch(8.0)
    assert not any(map(off.is_spike, [*falling(60), 1e9]))
    assert not any(map(young.is_spike, [*falling(LEAST - 1), 1e9]))


def test_what_is_not_finite_is_left_to_others():
    watch = SpikeWatch(8.0)
    assert not any(map(watch.is_spike, [*falling(60), float("nan"), float("inf")]))
    assert watch.is_spike(10.0)


def test_a_resumed_run_decides_alike():
    losses = [*falling(70), 3.0, 1.3, 3.5]
    whole = SpikeWatch(8.0)
    expected = [whole.is_spike(loss) for loss in losses]
    first, second = SpikeWatch(8.0), SpikeWatch(8.0)
    got = [first.is_spike(loss) for loss in losses[:40]]
    second.load_state(first.state())
    assert got + [second.is_spike(loss) for loss in losses[40:]] == expected and sum(expected) == 2
