"""Connected parts: sizes by hand, and what becomes of a prediction's specks."""

import numpy as np
from scipy import ndimage

from mri_ds.data.parts import part_volumes_ml, small_parts, smallest_part_ml


def speckled() -> np.ndarray:
    """Class 1 in a part of 27 voxels and one of 1; class 2 in a part of 8 that touches nothing."""
    labels = np.zeros((12, 12, 12), dtype=np.int16)
    labels[1:4, 1:4, 1:4] = 1
    labels[10, 10, 10] = 1
    labels[6:8, 6:8, 6:8] = 2
    return labels


def find(smallest_voxels: list[float], always=(True, False, False)) -> tuple[np.ndarray, list[float]]:
    return small_parts(speckled(), [v * 0.002 for v in smallest_voxels], always, voxel_ml=0.002)


def test_volumes_by_hand_and_against_scipy_on_noise():
    one, two = part_volumes_ml(speckled(), num_classes=3, voxel_ml=0.002)
    assert sorted(one) == [0.002, 0.054] and two.tolist() == [0.016]
    noise = np.random.default_rng(0).integers(0, 3, size=(9, 8, 7)).astype(np.int16)
    for k, volumes in enumerate(part_volumes_ml(noise, num_classes=4, voxel_ml=1.0), start=1):
        parts, count = ndimage.label(noise == k, np.ones((3, 3, 3)))
        assert sorted(volumes) == sorted(ndimage.sum_labels(noise == k, parts, range(1, count + 1)))


def test_corners_connect():
    labels = np.zeros((2, 2, 2), dtype=np.int16)
    labels[0, 0, 0] = labels[1, 1, 1] = 1
    assert part_volumes_ml(labels, num_classes=2, voxel_ml=1.0)[0].tolist() == [2.0]


def test_smallest_is_the_fifth_percentile_over_all_subjects():
    assert smallest_part_ml([np.arange(0.0, 51.0), np.arange(51.0, 101.0)]) == 5.0
    assert smallest_part_ml([]) == smallest_part_ml([np.zeros(0)]) == 0.0


def test_a_speck_is_small_and_its_class_told():
    is_small, ml = find([0, 20, 2])
    assert np.argwhere(is_small).tolist() == [[10, 10, 10]] and ml == [0.0, 0.002, 0.0]


def test_half_of_the_smallest_is_still_believed():
    """Eight voxels: believed where training's smallest has 16, not where it has 17."""
    assert find([0, 0, 16])[0].sum() == 0
    assert (find([0, 0, 17])[0] == (speckled() == 2)).all()


def test_of_a_class_that_everybody_has_the_largest_part_is_never_small():
    is_small, ml = find([0, 1000, 1000], always=(True, True, False))
    assert is_small.sum() == 1 + 8 and is_small[10, 10, 10]
    np.testing.assert_allclose(ml, [0, 0.002, 0.016])


def test_without_sizes_nothing_is_small():
    is_small, ml = find([0, 0, 0])
    assert not is_small.any() and ml == [0.0, 0.0, 0.0]
