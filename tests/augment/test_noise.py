"""Noise: its distribution by scipy's tests and by Rician moments, its seeds, independence of neighbours."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import kstest, kurtosis, rice, skew

from mri_ds.augment.frame import Frame
from mri_ds.augment.noise import apply_gaussian, apply_rician, draw_noise, hash32, normal

SEED = np.array([-17, 2**31 - 1])


def test_numbers_are_normal():
    numbers = normal((100, 100, 100), SEED).flatten().double().numpy()
    assert kstest(numbers, "norm").pvalue > 0.01
    assert abs(numbers.mean()) < 4e-3 and numbers.std() == pytest.approx(1, abs=3e-3)
    assert abs(skew(numbers)) < 0.01 and abs(kurtosis(numbers)) < 0.02 and 4.5 < np.abs(numbers).max() < 6


def test_neither_neighbours_nor_seeds_nor_halves_are_correlated():
    noise = normal((60, 60, 60), SEED)
    bound = 4 / np.sqrt(noise.numel())
    other = [noise.roll(shift, axis) for axis in range(3) for shift in (1, 2, 30)]
    other += [normal((60, 60, 60), SEED + change) for change in ([1, 0], [0, -1], [1 << 20, 0])]
    for same in other:
        assert abs(float((noise * same).mean())) < bound and abs(float((noise.square() * same.square()).mean()) - 1) < 4 * bound


def test_power_is_the_same_at_all_frequencies():
    power = np.abs(np.fft.rfftn(normal((64, 64, 64), SEED).double().numpy())) ** 2 / 64**3
    for part in (power[:16], power[16:48], power[:, 16:48], power[..., 1:8], power[..., 16:]):
        assert part.mean() == pytest.approx(1, abs=0.03)


def test_hash_is_the_published_one_and_never_maps_two_numbers_to_one():
    """lowbias32 by hand in Python's integers."""

    def expected(x: int) -> int:
        x ^= x >> 16
        x = x * 0x7FEB352D % 2**32
        x ^= x >> 15
        x = x * 0x846CA68B % 2**32
        return x ^ x >> 16

    numbers = [0, 1, 2, 12345, 2**31 - 1, 2**31, 2**32 - 1]
    signed = torch.tensor([n - 2**32 if n >= 2**31 else n for n in numbers], dtype=torch.int32)
    assert [n % 2**32 for n in hash32(signed).tolist()] == [expected(n) for n in numbers]
    assert len(hash32(torch.arange(100_000, dtype=torch.int32)).unique()) == 100_000


def test_odd_counts_and_the_same_seed():
    assert normal((3, 5, 7), SEED).shape == (3, 5, 7) and torch.equal(normal((3, 5, 7), SEED), normal((3, 5, 7), SEED))


def test_gaussian_noise_has_the_stated_deviation_per_channel():
    noise = apply_gaussian(torch.zeros(2, 40, 40, 40), np.array([0.1, 0.0]), SEED)
    assert noise[0].std().item() == pytest.approx(0.1, rel=0.02) and noise[0].mean().abs() < 2e-3
    assert not noise[1].any()


@pytest.mark.parametrize("signal", [0.0, 0.5, 3.0])
def test_rician_noise_has_the_moments_of_scipys_distribution(signal):
    """A signal over a minimum of -2 (one voxel), sigma 0.5: the magnitude less the minimum is Rice distributed."""
    image = torch.full((1, 60, 60, 60), signal - 2)
    image[0, 0, 0, 0] = -2
    noisy = apply_rician(image, np.array([0.5]), SEED).flatten()[1:].double().numpy() + 2
    expected = rice(signal / 0.5, scale=0.5)
    assert noisy.min() >= 0
    assert noisy.mean() == pytest.approx(expected.mean(), abs=5e-3) and noisy.std() == pytest.approx(expected.std(), rel=0.01)
    assert kstest(noisy, expected.cdf).pvalue > 0.01


def test_rician_noise_of_no_deviation_is_the_image():
    image = normal((2, 8, 8, 8), SEED)
    assert torch.allclose(apply_rician(image, np.zeros(2), SEED), image, atol=1e-6)


def test_rician_noise_agrees_with_monai_on_a_raw_image():
    """MONAI's formula given our two normal fields; a raw image has minimum 0, where both definitions meet."""
    transforms = pytest.importorskip("monai.transforms", reason="MONAI is not installed")
    image = torch.rand(1, 9, 8, 7, generator=torch.Generator().manual_seed(0))
    image[0, 0, 0, 0] = 0
    fields = iter(normal((2, *image.shape), SEED).mul(0.3).numpy())
    rician = transforms.RandRicianNoise(prob=1.0, std=0.3, sample_std=False)
    rician.R = SimpleNamespace(rand=lambda: 0.0, normal=lambda mean, std, size: next(fields))
    expected = rician(image).numpy()
    assert np.allclose(apply_rician(image, np.array([0.3]), SEED), expected, atol=1e-6)


def test_drawn_deviations_lie_within_the_strength():
    rng = np.random.default_rng(0)
    stds = np.concatenate([draw_noise(rng, Frame((4, 4, 4), (1, 1, 1), 3), 0.2)[0] for _ in range(200)])
    assert 0 <= stds.min() < 0.01 and 0.19 < stds.max() <= 0.2
