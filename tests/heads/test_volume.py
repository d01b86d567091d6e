import math

import pytest
import torch

from mri_ds.heads.volume import VolumeHeads, VolumeTask, log_share
from mri_ds.heads.voxel import log_prior


def test_log_share_is_the_log_ratio_to_the_prior_by_hand():
    """A quarter of the voxels surely of class 1, whose prior is one half: log(0.25 / 0.5)."""
    logits = torch.zeros(1, 2, 2, 2, 2)
    logits[0, 0] = 50.0
    logits[0, 1, 0, 0, :] = 100.0
    out = log_share(logits, log_prior([0.5, 0.5]))
    torch.testing.assert_close(out, torch.tensor([[math.log(0.75 / 0.5), math.log(0.25 / 0.5)]]))


def test_an_empty_region_is_finite():
    logits = torch.full((1, 2, 2, 2, 2), -100.0)
    logits[:, 0] = 100.0
    assert log_share(logits, log_prior([1.0, 0.0])).isfinite().all()


def test_regression_comes_in_the_targets_unit():
    torch.manual_seed(0)
    heads = VolumeHeads(8, {"age": VolumeTask(mean=1000.0, std=0.001)}, {})
    assert heads(torch.randn(3, 1, 8), {})["age"].tolist() == pytest.approx([1000.0] * 3, abs=0.1)
