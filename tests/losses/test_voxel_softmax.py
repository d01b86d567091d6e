"""The sums against their definitions, with and without ignored voxels, and their closed-form gradient."""

import pytest
import torch
import torch.nn.functional as F

from mri_ds.losses.voxel_softmax import voxel_softmax


@pytest.mark.parametrize("ignore_index", [None, 1, -1, 255])
def test_sums_are_what_they_say(volumes, ignore_index):
    logits, target = volumes(dtype=torch.float64)
    if ignore_index is not None:
        target[:, 1:3] = ignore_index
    valid = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    sums = voxel_softmax(logits, target, ignore_index=ignore_index)
    log_probs = logits.log_softmax(1)
    for b in range(2):
        log_p = log_probs[b][:, valid[b]]  # (K, valid voxels)
        one_hot = F.one_hot(target[b][valid[b]], 4).T
        torch.testing.assert_close(sums.overlap[b], (log_p.exp() * one_hot).sum(1))
        torch.testing.assert_close(sums.mass[b], log_p.exp().sum(1))
        torch.testing.assert_close(sums.volume[b], one_hot.sum(1).double())
        torch.testing.assert_close(sums.mean_log_prob[b], log_p.mean())
        torch.testing.assert_close(sums.mean(sums.log_prob)[b], (log_p * one_hot).sum(0).mean())


@pytest.mark.parametrize("ignore_index", [None, 1])
def test_gradcheck_of_every_sum(volumes, ignore_index):
    logits, target = volumes(shape=(2, 3, 2), dtype=torch.float64)
    every = lambda z: tuple(voxel_softmax(z, target, ignore_index=ignore_index))[:4]  # noqa: E731
    assert torch.autograd.gradcheck(every, logits.requires_grad_())


def test_ignored_voxels_get_no_gradient_and_a_volume_of_them_none_at_all(volumes):
    logits, target = volumes()
    target[0] = 2
    logits.requires_grad_()
    sums = voxel_softmax(logits, target, ignore_index=2)
    torch.stack([x.sum() for x in sums]).sum().backward()
    ignored = (target == 2)[:, None].expand_as(logits)
    assert logits.grad[ignored].eq(0).all() and logits.grad[1][~ignored[1]].ne(0).any()
    assert sums.num_voxels[0] == 1 and not sums.volume[0].any()
