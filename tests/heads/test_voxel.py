"""Voxel heads: where they start, and what each resolution adds."""

import torch
import torch.nn.functional as F

from mri_ds.heads.voxel import VoxelHeads


def test_start_at_half_the_log_prior():
    """Shares of 0.9 and 0.1 start at odds of sqrt(9) = 3 to 1."""
    heads = VoxelHeads(4, 16, {"tissue": [0.9, 0.1]})
    share = heads(torch.zeros(1, 4, 2, 2, 2), torch.randn(1, 16, 1, 1, 1))["tissue"].softmax(1)[0, :, 0, 0, 0]
    torch.testing.assert_close(share, torch.tensor([0.75, 0.25]))


def test_logits_are_the_scaled_convolution_at_full_plus_the_upsampled_one_at_half_resolution():
    torch.manual_seed(0)
    heads = VoxelHeads(4, 16, {"tissue": [0.5, 0.3, 0.2], "type": [0.5, 0.5]})
    for head in [*heads.full, *heads.at_half]:
        torch.nn.init.normal_(head.weight)
    full, half = torch.randn(2, 4, 4, 6, 8), torch.randn(2, 16, 2, 3, 4)
    logits = heads(full, half)
    assert {task: x.shape[1] for task, x in logits.items()} == {"tissue": 3, "type": 2}
    for i, x in enumerate(logits.values()):
        fine = 64 * F.conv3d(full, heads.full[i].weight, heads.full[i].bias)
        coarse = 16 * F.conv3d(half, heads.at_half[i].weight)
        expected = fine + F.interpolate(coarse, scale_factor=2, mode="trilinear")
        torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-3)
