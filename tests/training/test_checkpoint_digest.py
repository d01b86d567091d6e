"""Digests name what changed, whoever holds it; places know where a rank's part lies in the whole."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mri_ds.training.checkpoint.digest import differences, digest, digest_of_whole
from mri_ds.training.checkpoint.parts import Place

E, F, D = 4, 3, 5  # experts, expert width, model width
W1 = {"block": F * D, "stride": 2 * F * D}


def by_hand(values: list[float], start: int = 0) -> int:
    """The same sum in Python's integers."""
    import struct

    total = 0
    for index, value in enumerate(values, start):
        z = ((index + 1) * 0x9E3779B97F4A7C15) % 2**64
        z = signed(z)
        z = signed((z ^ (z >> 29)) * 0xBF58476D1CE4E5B9)
        total += struct.unpack("<i", struct.pack("<f", value))[0] * ((z ^ (z >> 32)) | 1)
    return signed(total)


def signed(number: int) -> int:
    return (number + 2**63) % 2**64 - 2**63


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20), st.integers(0, 10**12))
def test_digest_is_the_sum_by_hand(values, start):
    assert digest([torch.tensor(values)], start) == [by_hand(values, start)]


def test_shards_add_up_and_one_bit_shows():
    x = torch.randn(3_000_001, generator=torch.Generator().manual_seed(0))
    whole = digest([x], 0)[0]
    assert signed(digest([x[:1_234_567]], 0)[0] + digest([x[1_234_567:]], 1_234_567)[0]) == whole
    for place in (0, 1_048_576, 3_000_000):
        y = x.clone()
        y.view(torch.int32)[place] ^= 1
        assert digest([y], 0)[0] != whole
    assert digest([x.flip(0)], 0)[0] != whole


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("cut", [1, 7, 14, 30])
def test_experts_of_any_number_of_ranks_have_the_digests_of_the_whole(ranks, cut):
    """w1 and w3 of each rank, cut again at `cut` as ZeRO would, against gate_up_proj (E, 2F, D)."""
    whole = torch.randn(E, 2 * F, D)
    sums = [0] * E
    for rank in range(ranks):
        own = whole[rank * E // ranks : (rank + 1) * E // ranks]
        for offset, local in ((0, own[:, :F]), (F * D, own[:, F:])):
            place = Place("gate_up_proj", (E, 2 * F, D), offset=offset, first=rank * E // ranks, **W1)
            flat = local.reshape(-1)
            assert torch.equal(place.local(whole, flat.numel()), flat)
            assert place.rows == E
            for start, numel in ((0, min(cut, flat.numel())), (min(cut, flat.numel()), max(0, flat.numel() - cut))):
                part = flat[start : start + numel]
                for run, index, row in place.runs(start, numel):
                    sums[row] = signed(sums[row] + digest([part[run]], index)[0])
    assert sums == digest_of_whole(whole, E)


def test_differences_name_the_expert_and_the_moment():
    saved = {
        "experts.down_proj": {"fp32": [1, 2, 3], "exp_avg": [1, 2, 3], "exp_avg_sq": [1, 2, 3]},
        "norm.weight": {"fp32": [7], "exp_avg": [8], "exp_avg_sq": [9]},
    }
    loaded = {
        "experts.down_proj": {"fp32": [1, 5, 6], "exp_avg": [1, 2, 3], "exp_avg_sq": [1, 2, 3]},
        "norm.weight": {"fp32": [7], "exp_avg": [0], "exp_avg_sq": [9]},
    }
    assert differences(saved, saved) == []
    assert differences(saved, loaded) == [
        "the weight of experts 1, 2 of experts.down_proj",
        "the first moment (exp_avg) of norm.weight",
    ]
    assert differences(saved, {"norm.weight": saved["norm.weight"]}) == ["experts.down_proj is gone"]
