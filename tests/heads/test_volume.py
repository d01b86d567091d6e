import math

import pytest
import torch

from mri_ds.heads.volume import RegionStatistics, VolumeHeads, VolumeTask, relative_size

HALVES = RegionStatistics(mean=[math.log(0.5)] * 2, std=[0.4, 0.5])


def test_relative_size_by_hand():
    """A quarter of the voxels surely of class 1, which has a half on average: log(0.25 / 0.5) in units of 0.5."""
    logits = torch.zeros(1, 2, 2, 2, 2)
    logits[0, 0] = 50.0
    logits[0, 1, 0, 0, :] = 100.0
    out = relative_size(logits, HALVES)
    torch.testing.assert_close(out, torch.tensor([[math.log(0.75 / 0.5) / 0.4, math.log(0.25 / 0.5) / 0.5]]))


def test_an_empty_region_and_one_that_never_varies_stay_within_three_deviations():
    logits = torch.full((1, 2, 2, 2, 2), -100.0)
    logits[:, 0] = 100.0
    out = relative_size(logits, RegionStatistics(mean=[-0.1, -2.0], std=[0.0, 0.1]))
    torch.testing.assert_close(out, torch.tensor([[0.1 / 0.05, -3.0]]))


def test_regression_comes_in_the_targets_unit():
    torch.manual_seed(0)
    heads = VolumeHeads(8, {"age": VolumeTask(mean=1000.0, std=0.001)}, {})
    assert heads(torch.randn(3, 1, 8), {})["age"].tolist() == pytest.approx([1000.0] * 3, abs=0.1)
