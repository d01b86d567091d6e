"""The body's box: exact where the background is zero, Otsu as SimpleITK has it, and nothing moves in the world."""

import numpy as np
import pytest
import SimpleITK as sitk

from mri_ds.data.preprocess import foreground_box
from mri_ds.data.preprocess.foreground import crop, otsu_threshold

EVERY_MM = (1.0, 1.0, 1.0)


def bounds(box) -> list[tuple[int, int]]:
    return [(side.start, side.stop) for side in box]


def ball(shape=(60, 50, 56), centre=(34, 22, 30), radius=14) -> np.ndarray:
    return sum((axis - c) ** 2 for axis, c in zip(np.indices(shape), centre)) < radius**2


def rician(signal: np.ndarray, sigma: float, seed=0) -> np.ndarray:
    """A magnitude image: noise in air is never zero."""
    noise = np.random.default_rng(seed).normal(0, sigma, size=(2, *signal.shape))
    return np.hypot(signal + noise[0], noise[1]).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_otsu_is_simpleitks(seed):
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.normal(10, 3 + seed, 6000), rng.normal(60 + 9 * seed, 12, 3000)]).reshape(10, 30, 30)
    otsu = sitk.OtsuThresholdImageFilter()
    otsu.SetNumberOfHistogramBins(256)
    otsu.Execute(sitk.GetImageFromArray(values))
    assert otsu_threshold(values) == pytest.approx(otsu.GetThreshold(), abs=np.ptp(values) / 256)


def test_otsu_parts_two_values():
    """By hand: values 0 and 10; every border between parts them equally well, the first is taken: a 256th of the range."""
    assert otsu_threshold(np.array([0.0] * 7 + [10.0] * 3)) == pytest.approx(10 / 256)


def test_zero_background_gives_the_exact_box_and_the_margin_is_in_mm():
    image = np.zeros((2, 30, 30, 30), dtype=np.float32)
    image[0, 10:20, 8:12, 5] = 3
    image[1, 12:22, 8, 5:7] = -4  # negative is not nothing; any channel counts
    assert bounds(foreground_box(image, EVERY_MM, 0)) == [(10, 22), (8, 12), (5, 7)]
    assert bounds(foreground_box(image, (1.0, 2.0, 3.0), 3.5)) == [(6, 26), (6, 14), (3, 9)]  # 4, 2 and 2 voxels, rounded up
    assert bounds(foreground_box(image, EVERY_MM, 9)) == [(1, 30), (0, 21), (0, 16)]


def test_a_body_in_noisy_air_is_found():
    """Otsu on blocks of 4 mm: the box holds the ball, and no more than a block beside it."""
    inside = ball()
    image = rician(200.0 * inside, sigma=20)
    image[2, 3, 4] = 5e4  # a spike, and a bright speck that is no body
    image[50:53, 44:47, 3:6] = 400
    for box, places in zip(foreground_box(image[None], EVERY_MM, 0), np.nonzero(inside)):
        assert places.max() + 1 <= box.stop <= places.max() + 6 and places.min() - 5 <= box.start <= places.min()


def test_voxel_size_does_not_matter():
    inside = ball()
    thin = rician(200.0 * inside, sigma=20)
    thick = thin[:, :, ::4]
    boxes = foreground_box(thin[None], EVERY_MM, 4), foreground_box(thick[None], (1.0, 1.0, 4.0), 4)
    for axis, scale in enumerate((1, 1, 4)):
        assert abs(boxes[0][axis].start - scale * boxes[1][axis].start) <= 4
        assert abs(boxes[0][axis].stop - scale * boxes[1][axis].stop) <= 4


def test_without_a_foreground_the_whole_volume_stays():
    assert bounds(foreground_box(np.zeros((1, 5, 6, 7), dtype=np.float32), EVERY_MM, 0)) == [(0, 5), (0, 6), (0, 7)]
    assert bounds(foreground_box(np.full((1, 5, 6, 7), 3, dtype=np.float32), EVERY_MM, 0)) == [(0, 5), (0, 6), (0, 7)]
    assert bounds(foreground_box(np.arange(3, dtype=np.float32).reshape(1, 3, 1, 1), (1, 1, 9.0), 50)) == [(0, 3), (0, 1), (0, 1)]


def test_cropping_moves_nothing(subject, oblique):
    sample = subject(affine=oblique())
    box = (slice(1, 4), slice(2, 7), slice(3, 5))
    part = crop(sample, box)
    assert np.array_equal(part["image"], sample["image"][:, 1:4, 2:7, 3:5]) and part["targets"]["age"] == 40.5
    assert np.array_equal(part["targets"]["tissue"], sample["targets"]["tissue"][1:4, 2:7, 3:5])
    for d, h, w in np.ndindex(3, 5, 2):
        assert part["affine"] @ [d, h, w, 1] == pytest.approx(sample["affine"] @ [d + 1, h + 2, w + 3, 1])


@pytest.mark.parametrize("channel", ["T1", "FLAIR"])
def test_a_real_head_is_held_whole(channel, real_data):
    """Every lesion lies inside the box, and a part of the volume is spared."""
    from mri_ds.data.nifti import read_image, read_label

    lesions = read_label(real_data / "ms_lesions" / "patient07_lesions.nii.gz")
    scan = read_image(real_data / "ms_lesions" / f"patient07_{channel}.nii.gz")
    box = foreground_box(scan.voxels, scan.spacing_mm, 10)
    inside = np.zeros(scan.voxels.shape[1:], dtype=bool)
    inside[box] = True
    assert lesions.voxels.any() and not (lesions.voxels.astype(bool) & ~inside).any()
    assert inside.mean() < 0.9
