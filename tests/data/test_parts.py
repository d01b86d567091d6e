"""Connected parts: sizes by hand, and what becomes of a prediction's specks."""

import numpy as np
import torch
from scipy import ndimage

from mri_ds.data.parts import drop_small_parts, part_volumes_ml, smallest_part_ml


def scores_of(labels: np.ndarray, second: int = 0) -> torch.Tensor:
    """Scores whose best class is `labels` and whose next best is `second`."""
    scores = torch.zeros(int(labels.max()) + 1, *labels.shape)
    scores[second] = 1.0
    scores.scatter_(0, torch.from_numpy(labels)[None].long(), 2.0)
    return scores


def speckled() -> np.ndarray:
    """Class 1 in a part of 27 voxels and one of 1; class 2 in a part of 8 that touches nothing."""
    labels = np.zeros((12, 12, 12), dtype=np.int16)
    labels[1:4, 1:4, 1:4] = 1
    labels[10, 10, 10] = 1
    labels[6:8, 6:8, 6:8] = 2
    return labels


def drop(scores: torch.Tensor, smallest_voxels: list[float], always=(True, False, False)) -> tuple[np.ndarray, list[float]]:
    return drop_small_parts(scores, smallest_ml=[v * 0.002 for v in smallest_voxels], is_always_present=always, voxel_ml=0.002)


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


def test_a_speck_becomes_the_next_best_class_voxel_by_voxel():
    labels, dropped = drop(scores_of(speckled(), second=2), [0, 20, 2])
    assert labels[10, 10, 10] == 2 and (labels == 1).sum() == 27 and dropped == [0.0, 0.002, 0.0]
    assert labels.dtype == np.int16


def test_half_of_the_smallest_is_still_believed():
    """Eight voxels: kept where training's smallest has 16, dropped at 17."""
    assert (drop(scores_of(speckled()), [0, 0, 16])[0] == 2).sum() == 8
    assert (drop(scores_of(speckled()), [0, 0, 17])[0] == 2).sum() == 0


def test_of_a_class_that_everybody_has_the_largest_part_stays():
    labels, dropped = drop(scores_of(speckled()), [0, 1000, 1000], always=(True, True, False))
    assert (labels == 1).sum() == 27 and (labels == 2).sum() == 0
    np.testing.assert_allclose(dropped, [0, 0.002, 0.016])


def test_without_sizes_nothing_changes():
    labels, dropped = drop(scores_of(speckled()), [0, 0, 0])
    assert (labels == speckled()).all() and dropped == [0.0, 0.0, 0.0]
