"""What ZeRO-3's gradients go through on a CPU, held against the plain computation; engines: distributed/test_resident.py."""

import pytest
import torch

from mri_ds.training.gradient_passes import PIECE, _is_made_of, norms_of_pieces


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("numel", [0, 1, PIECE, 3 * PIECE + 17])
def test_the_norm_of_pieces_is_the_norm(numel, dtype):
    gradient = (1e-3 * torch.randn(numel, generator=torch.Generator().manual_seed(numel))).to(dtype)
    norms = norms_of_pieces(gradient)
    assert norms.dtype == torch.float64
    assert float(norms.norm()) == pytest.approx(float(gradient.double().norm()), rel=1e-13, abs=0)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_a_number_that_is_none_stays_one(wrong):
    gradient = torch.zeros(2 * PIECE)
    gradient[-1] = wrong
    assert not torch.isfinite(norms_of_pieces(gradient).norm())


def test_only_what_lies_side_by_side_is_taken_as_it_lies():
    whole = torch.arange(10.0)
    first, second = whole[:4], whole[4:]
    assert _is_made_of(whole, [first, second]) and _is_made_of(whole[4:], [second])
    for parts in ([second, first], [first], [first, second, second], [first, second.clone()], [first, second.bfloat16()]):
        assert not _is_made_of(whole, parts)
    assert not _is_made_of(whole, [first, torch.zeros(6)]), "the filler of a frozen weight"
