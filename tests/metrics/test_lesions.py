"""Lesions one by one: worked counts, and SimpleITK's connected components as the oracle."""

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from mri_ds.metrics.lesions import LesionCounts, lesion_counts, lesion_f1


def test_worked_by_hand():
    truth, prediction = np.zeros((2, 12, 12, 6), dtype=bool)
    truth[1:4, 1:4, 1:4] = True  # 27 voxels, found by one
    truth[4, 4, 4] = True  # touches the first by a corner: the same lesion
    truth[8, 8, 1] = True  # missed
    prediction[1, 1, 1] = prediction[8, 1, 1] = prediction[10, 10, 4] = True
    assert lesion_counts(truth, prediction) == LesionCounts(num_true=2, num_found=1, num_predicted=3, num_right=1)
    assert lesion_f1(truth, prediction) == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    assert lesion_counts(truth, prediction, min_overlap=0.1).num_found == 0  # 1 of 28 voxels is too little
    assert lesion_counts(truth, prediction, min_overlap=0.1).num_right == 1


@pytest.mark.parametrize("seed", range(3))
def test_equals_counts_by_simpleitk(seed):
    rng = np.random.default_rng(seed)
    truth, prediction = (ndimage.gaussian_filter(rng.standard_normal((24, 20, 16)), 1) > 0.25 for _ in range(2))
    expected = []
    for mask, by in ((truth, prediction), (prediction, truth)):
        parts = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(mask.astype(np.uint8)), True))
        labels = [k for k in np.unique(parts) if k]
        expected += [len(labels), sum(bool((by & (parts == k)).sum() >= 0.2 * (parts == k).sum()) for k in labels)]
    found = lesion_counts(truth, prediction, min_overlap=0.2)
    assert list(found) == expected and found.num_true > 5 and 0 < found.num_found < found.num_true


def test_empty_masks():
    empty, some = np.zeros((3, 3, 3), dtype=bool), np.ones((3, 3, 3), dtype=bool)
    assert np.isnan(lesion_f1(empty, empty))
    assert lesion_f1(some, empty) == lesion_f1(empty, some) == 0.0
    assert lesion_f1(some, some) == 1.0
    with pytest.raises(ValueError, match="no share"):
        lesion_counts(some, some, min_overlap=2)
    with pytest.raises(ValueError, match="differ in shape"):
        lesion_counts(some, np.ones((2, 2, 2), dtype=bool))
