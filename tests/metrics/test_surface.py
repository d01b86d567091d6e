"""Surface distances: worked numbers, MONAI as the oracle (anisotropic voxels, objects at the border), and empty masks."""

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance
from scipy import ndimage

from mri_ds.metrics.surface import diagonal_mm, hd95_mm, surface_distances_mm


def blobs(seed: int, shape: tuple[int, int, int] = (20, 24, 16)) -> np.ndarray:
    """Smooth random masks, several pieces, usually touching the border."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2, mode="wrap")
    return noise > 0.5 * noise.std()


def monai_hd(truth: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...], percentile: float) -> float:
    one_hot = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, truth)]
    return compute_hausdorff_distance(*one_hot, include_background=True, percentile=percentile, spacing=list(spacing)).item()


def test_worked_by_hand():
    # a bar of 10 voxels against its first 8: the shorter one lies on the longer (all 0), and from the longer the last two
    # voxels are 1 and 2 steps of 2 mm away: distances 0 (8 times), 2, 4, whose 95th percentile is 2 + 2 * 0.55 = 3.1
    truth = np.zeros((12, 5, 5), dtype=bool)
    truth[1:11, 2, 2] = True
    prediction = truth.copy()
    prediction[9:11] = False
    from_truth, from_prediction = surface_distances_mm(truth, prediction, (2.0, 1.0, 1.0))
    assert sorted(from_truth) == [0] * 8 + [2, 4] and not from_prediction.any()
    assert hd95_mm(truth, prediction, (2.0, 1.0, 1.0)) == pytest.approx(3.1)
    assert hd95_mm(truth, prediction, (2.0, 1.0, 1.0), percentile=100) == 4.0


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 1.3, 5.0), (3.0, 0.5, 0.5)])
@pytest.mark.parametrize("percentile", [95, 50, 100])
def test_equals_monai(spacing, percentile):
    for seed in range(4):
        truth, prediction = blobs(seed), blobs(seed + 100)
        prediction[seed % 2 :, 3:] ^= truth[seed % 2 :, 3:] & ~prediction[seed % 2 :, 3:]  # mostly the truth, with extra pieces
        expected = monai_hd(truth, prediction, spacing, percentile)
        assert hd95_mm(truth, prediction, spacing, percentile) == pytest.approx(expected, abs=1e-5)


def test_equals_monai_where_objects_fill_the_border():
    # with border_value 1 the whole volume would have no surface at all, and the slab none on its outer face
    whole, slab, inner = (np.zeros((8, 9, 10), dtype=bool) for _ in range(3))
    whole[:], slab[:3], inner[2:5, 2:5, 2:5] = True, True, True
    for truth, prediction in [(whole, slab), (slab, inner), (inner, whole)]:
        expected = monai_hd(truth, prediction, (1.0, 2.0, 1.5), 95)
        assert hd95_mm(truth, prediction, (1.0, 2.0, 1.5)) == pytest.approx(expected, abs=1e-5)


def test_does_not_depend_on_order_padding_or_axes():
    truth, prediction, spacing = blobs(1), blobs(2), (0.7, 1.1, 3.0)
    value = hd95_mm(truth, prediction, spacing)
    assert hd95_mm(prediction, truth, spacing) == value
    assert hd95_mm(np.pad(truth, 5), np.pad(prediction, 5), spacing) == pytest.approx(value)
    assert hd95_mm(truth.transpose(2, 0, 1), prediction.transpose(2, 0, 1), (3.0, 0.7, 1.1)) == pytest.approx(value)
    assert hd95_mm(truth, truth, spacing) == 0.0


def test_empty_masks():
    empty, some = np.zeros((30, 40, 10), dtype=bool), np.zeros((30, 40, 10), dtype=bool)
    some[15, 20, 5] = True
    diagonal = np.sqrt(30**2 + 40**2 + 50**2)  # 10 planes of 5 mm
    assert np.isnan(hd95_mm(empty, empty, (1, 1, 5)))
    assert hd95_mm(some, empty, (1, 1, 5)) == pytest.approx(diagonal)
    assert hd95_mm(empty, some, (1, 1, 5)) == pytest.approx(diagonal)
    assert diagonal_mm((30, 40, 10), (1, 1, 5)) == pytest.approx(diagonal)


def test_wrong_spacing_is_named():
    with pytest.raises(ValueError, match="spacing"):
        hd95_mm(np.ones((2, 2, 2), dtype=bool), np.ones((2, 2, 2), dtype=bool), (1.0, 1.0))
