"""Dice while training: voxels of the class to ignore count as little as in the loss."""

import numpy as np
import pytest

from mri_ds.config import TaskConfig
from mri_ds.training.validation import _dice_by_class

TASK = TaskConfig(kind="segmentation", classes=["background", "grey", "unsure"])


def test_ignored_voxels_count_in_no_class_and_theirs_has_no_figure():
    truth, guess = np.array([0, 1, 1, 2, 2]), np.array([0, 1, 0, 1, 2])
    assert _dice_by_class(truth, guess, TASK, "unsure") == [pytest.approx(2 / 3), pytest.approx(np.nan, nan_ok=True)]
    assert _dice_by_class(truth, guess, TASK, "") == [pytest.approx(2 / 4), pytest.approx(2 / 3)]
