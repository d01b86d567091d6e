"""A fingerprint of every parameter and of both its moments that does not depend on how ranks share them.

The digest of a tensor is the sum over its elements of (the 32 bits of the float) x (an odd number mixed from the element's global
index), modulo 2^64. Sums of shards add up to the sum of the whole, so each rank sums its own part and one all-reduce ends it; a
changed element always changes the digest, because an odd factor cannot bring a difference of fewer than 2^64 to zero.
Experts have one digest each, so that a wrong one is named.
"""

from typing import Any

import torch
from torch import Tensor

from mri_ds.errors import InputError
from mri_ds.training import distributed
from mri_ds.training.checkpoint.parts import KEYS, parts, places

Digests = dict[str, dict[str, list[int]]]  # own name -> key -> one number per expert, or one
CHUNK = 1 << 20  # elements at a time


@torch.no_grad()
def digests(engine: Any) -> Digests:
    """Of the whole model, alike on every rank and on any number of them. Every rank must call it.

    Empty for an optimiser whose shards parts.py cannot tell apart: such a run goes on with its own layout only.
    """
    try:
        mine = parts(engine)
    except InputError:
        return {}
    rows = {place.own: place.rows for place in places(engine.module).values()}
    first = dict(zip(rows, _starts([len(KEYS) * count for count in rows.values()]), strict=True))
    sums = torch.zeros(len(KEYS) * sum(rows.values()), dtype=torch.int64)
    for part in mine:
        if not part.is_counted:
            continue
        values = [part.read(key) for key in KEYS]
        for run, index, row in part.place.runs(part.start, part.numel):
            at = first[part.place.own] + row
            count = rows[part.place.own]
            for number, total in enumerate(digest([v[run] for v in values], index)):
                sums[at + number * count] += total
    sums = distributed.total(sums)
    out: Digests = {}
    for name, count in rows.items():
        numbers = sums[first[name] : first[name] + len(KEYS) * count].view(len(KEYS), count).tolist()
        out[name] = dict(zip(KEYS, numbers, strict=True))
    return out


def digest(tensors: list[Tensor], start: int) -> list[int]:
    """Of flat float32 tensors of one length, whose first element has the global index `start`.

    >>> a = torch.arange(6.0)
    >>> digest([a[:2]], 0)[0] + digest([a[2:]], 2)[0] == digest([a], 0)[0]
    True
    """
    totals = [0] * len(tensors)
    for low in range(0, tensors[0].numel(), CHUNK):
        high = min(low + CHUNK, tensors[0].numel())
        factors = _mix(torch.arange(start + low, start + high, dtype=torch.int64, device=tensors[0].device))
        for number, tensor in enumerate(tensors):
            bits = tensor[low:high].contiguous().view(torch.int32).to(torch.int64)
            totals[number] = _wrap(totals[number] + int((bits * factors).sum()))
    return totals


def digest_of_whole(tensor: Tensor, rows: int) -> list[int]:
    """Of a global tensor: one number for each of its `rows` experts, as `digests` gives them."""
    flat = tensor.float().reshape(rows, -1)
    return [digest([row], number * flat.shape[1])[0] for number, row in enumerate(flat)]


def differences(saved: Digests, loaded: Digests) -> list[str]:
    """What is not bit for bit what was saved, in words: "both moments of ...", "expert 3 of ..."."""
    found = []
    for name in sorted(saved.keys() | loaded.keys()):
        if name not in saved or name not in loaded:
            found.append(f"{name} is {'new' if name not in saved else 'gone'}")
            continue
        for key in KEYS:
            a, b = saved[name][key], loaded[name][key]
            wrong = [row for row, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]]
            if wrong or len(a) != len(b):
                which = f" of expert{'s' if len(wrong) > 1 else ''} {', '.join(map(str, wrong))}" if len(a) > 1 else ""
                found.append(f"{WORDS[key]}{which} of {name}")
    return found


WORDS = {"fp32": "the weight", "exp_avg": "the first moment (exp_avg)", "exp_avg_sq": "the second moment (exp_avg_sq)"}


def _mix(index: Tensor) -> Tensor:
    """int64 -> odd int64 without a pattern (after splitmix64, Steele et al. 2014); products wrap."""
    z = (index + 1) * -7046029254386353131
    z = (z ^ (z >> 29)) * -4658895280553007687
    return (z ^ (z >> 32)) | 1


def _wrap(number: int) -> int:
    return (number + 2**63) % 2**64 - 2**63


def _starts(counts: list[int]) -> list[int]:
    return [sum(counts[:i]) for i in range(len(counts))]
