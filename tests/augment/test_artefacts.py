"""Motion and spikes: against k-space done the long way, and against TorchIO."""

import numpy as np
import pytest
import torch

from mri_ds.augment.artefacts import apply_motion, apply_spike, draw_motion, draw_spike
from mri_ds.augment.deformation import rotation
from mri_ds.augment.frame import Frame
from mri_ds.augment.spatial import Deformation, resample

SHAPE, SPACING = (16, 14, 12), (1.0, 1.5, 2.0)
FRAME = Frame(SHAPE, SPACING, 2)


def image(channels: int = 2) -> torch.Tensor:
    return torch.randn(channels, *SHAPE, generator=torch.Generator().manual_seed(0)).add_(3)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_motion_is_k_space_put_together_from_moved_images(axis):
    """The 3-D Fourier transform of each moved image, its lines copied over the resting image's, and back."""
    matrices = np.stack([rotation([3, -5, 2]), rotation([-8, 1, 4])])
    shifts = np.array([[2.0, 1, -3], [-1, 0, 2]])
    lines = np.array([[0.65, 0.8], [0.8, 1.0]])
    moved = apply_motion(image(), matrices, shifts, lines, np.array([axis, *SPACING]))
    for channel in range(2):
        rest = image()[channel][None]
        spectrum = np.fft.fftshift(np.fft.fftn(rest[0].double().numpy()))
        for matrix, shift, (first, last) in zip(matrices, shifts, lines):
            other, _ = resample(
                rest,
                rest.new_zeros((0, *SHAPE)),
                start=(0, 0, 0),
                shape=SHAPE,
                spacing_mm=SPACING,
                deformation=Deformation(matrix=matrix, shift_mm=shift),
                fill=rest.min().item(),
            )
            n = SHAPE[axis]
            place = (slice(None),) * axis + (slice(round(first * n), round(last * n)),)
            spectrum[place] = np.fft.fftshift(np.fft.fftn(other[0].double().numpy()))[place]
        expected = np.fft.ifftn(np.fft.ifftshift(spectrum)).real
        assert np.allclose(moved[channel].numpy(), expected, atol=1e-4)


def test_motion_agrees_with_torchio_for_a_shift():
    """TorchIO moves patients along its third axis' k-space, here by whole voxels so that no two interpolations are compared."""
    torchio = pytest.importorskip("torchio", reason="TorchIO is not installed")
    ball = torch.zeros(1, *SHAPE)
    ball[:, 5:10, 5:9, 4:8] = torch.rand(5, 4, 4, generator=torch.Generator().manual_seed(1)) + 1
    motion = torchio.Motion(
        degrees=np.zeros((1, 3)), translation=np.array([[2.0, 1.0, 0.0]]), times=np.array([0.75]), image_interpolation="linear"
    )
    expected = motion(torchio.Subject(scan=torchio.ScalarImage(tensor=ball)))["scan"].data.float()
    candidates = [
        apply_motion(
            ball, np.eye(3)[None], np.array([[sx * 2.0, sy * 1.0, 0]]), np.array([[0.75, 1.0]]), np.array([2.0, 1, 1, 1])
        )
        for sx, sy in [(1, 1), (-1, -1), (1, -1), (-1, 1)]  # TorchIO counts its shift in LPS+, from or to
    ]
    assert any(torch.allclose(ours, expected, atol=1e-4) for ours in candidates) and not torch.allclose(ball, expected, atol=0.05)


def test_the_centre_of_k_space_is_at_rest():
    """So the anatomy stays where its label is: the low frequencies of the image are those of the still image."""
    before = image(1)
    for seed in range(20):
        dice = draw_motion(np.random.default_rng(seed), FRAME, 8.0)
        after = apply_motion(before, *dice)
        axis = int(dice[3][0])
        difference = np.fft.fftshift(np.fft.fft((after - before).double().numpy(), axis=axis + 1), axes=axis + 1)
        centre = np.take(difference, [SHAPE[axis] // 2], axis=axis + 1)
        assert np.abs(centre).max() < 1e-3 < (after - before).abs().max()


def test_drawn_moves_are_within_their_strength_and_in_order():
    for seed in range(100):
        matrices, shifts, lines, place = draw_motion(np.random.default_rng(seed), FRAME, 4.0)
        assert 1 <= len(matrices) == len(shifts) == len(lines) <= 3 and np.abs(shifts).max() <= 4
        assert np.all(lines[:, 0] <= lines[:, 1]) and lines.min() >= 0 and lines.max() <= 1
        assert np.all(lines >= 0.55) or np.all(lines <= 0.45)
        assert place[1:].tolist() == list(SPACING)


def test_a_spike_is_one_point_in_k_space_as_torchio_adds_it():
    torchio = pytest.importorskip("torchio", reason="TorchIO is not installed")
    before, place, ratio = image(1), np.array([[0.8, 0.3, 0.6]]), 0.2
    spike = torchio.Spike(spikes_positions=place, intensity=ratio)
    expected = spike(torchio.Subject(scan=torchio.ScalarImage(tensor=before)))["scan"].data.float()
    amplitude = ratio * np.abs(np.fft.fftn(before[0].double().numpy())).max() / np.prod(SHAPE)
    cycles = [(int(np.floor(p * n)) - n // 2) / n for p, n in zip(place[0], SHAPE)]
    assert torch.allclose(apply_spike(before, np.array([amplitude]), np.array([*cycles, 0])), expected, atol=1e-4)


def test_a_spike_by_hand():
    """A quarter cycle per voxel along the last axis, amplitude 2: +2, 0, -2, 0; half a cycle of phase turns it round."""
    line = torch.zeros(1, 1, 1, 4)
    wave = [0, 0, 0.25]
    assert apply_spike(line, np.array([2.0]), np.array([*wave, 0])).flatten().tolist() == pytest.approx([2, 0, -2, 0], abs=1e-6)
    assert apply_spike(line, np.array([2.0]), np.array([*wave, 0.5])).flatten().tolist() == pytest.approx([-2, 0, 2, 0], abs=1e-6)


def test_a_drawn_spike_has_whole_cycles_and_its_amplitude():
    for seed in range(100):
        amplitude, wave = draw_spike(np.random.default_rng(seed), FRAME, 0.5)
        assert amplitude.shape == (2,) and amplitude.min() >= 0 and amplitude.max() <= 0.5
        cycles = wave[:3] * SHAPE
        assert np.allclose(cycles, np.round(cycles)) and np.abs(wave[:3]).max() <= 0.5 and 0 <= wave[3] < 1


def test_strength_zero_is_the_identity():
    rng = np.random.default_rng(0)
    assert torch.allclose(apply_motion(image(), *draw_motion(rng, FRAME, 0.0)), image(), atol=1e-4)
    assert torch.equal(apply_spike(image(), *draw_spike(rng, FRAME, 0.0)), image())
