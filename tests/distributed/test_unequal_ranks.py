"""ZeRO-3 and expert parallelism where ranks hold other sizes and other labels, or none: no hang, and the result of one process.

Every rank calls every module in every step, so that ZeRO-3's gathers meet (DeepSpeed issues 7998 and 5828 hang without).
"""

import json

import forked
import pytest
import torch
import unequal

from mri_ds.training.parity.trace import Trace, compare

LAYOUTS = {2: [(3, 2, "block"), (2, 2, "none")], 4: [(3, 4, "block")]}
# In the same launch; the first rank has labels of a regression and no others, see unequal.py
VARIANTS = {2: [(3, 2, "block", "regression"), (2, 2, "none", "chosen")], 4: [(3, 4, "block", "chosen")]}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("ranks", LAYOUTS)
def test_unequal_ranks_equal_one_process(ranks, tmp_path):
    (tmp_path / "layouts.json").write_text(json.dumps([*LAYOUTS[ranks], *VARIANTS[ranks]]))
    codes = forked.start(ranks, tmp_path / "log", unequal.main, tmp_path, timeout_s=400)  # a hang fails here
    assert codes == [0] * ranks, (tmp_path / "log").read_text()[-4000:]
    (one, load), (precise, _) = unequal.plain(ranks, "fp32"), unequal.plain(ranks, "fp64")
    assert one.norms[3] == 0 and one.losses[3] == 0, "nothing to learn in the fourth update"
    assert all(norm > 0 for update, norm in enumerate(one.norms, start=1) if update != 4)
    load.balance(rate=0.1)
    told = load.scalars()
    for number in range(len(LAYOUTS[ranks])):
        row = compare(Trace.load(tmp_path / f"trace{number}.pt"), one, [precise], dtype="fp32")
        assert row["passed"], (LAYOUTS[ranks][number], row)
        shares, scalars = json.loads((tmp_path / f"load{number}.json").read_text())
        torch.testing.assert_close(torch.tensor(shares), load.shares, rtol=0, atol=0)
        assert scalars == told
    for number, layout in enumerate(VARIANTS[ranks], start=len(LAYOUTS[ranks])):
        check_variant(tmp_path, number, ranks, layout)


def check_variant(folder, number, ranks, layout):
    """As above, but what rounding does is told by two plain runs: in float64, and in float32 with PyTorch's kernels for oneDNN's.

    With these losses the gain of cross-task attention's queries and keys has a gradient of 1e-4 of the whole norm. Other kernels
    or another number of threads move it by 1.1e-5 of itself at the second update and 8e-5 at the last, in plain PyTorch; float64
    happens to lie 2.4e-6 away at the second, ranks 2e-5.
    """
    (one, load), (precise, _) = (unequal.plain(ranks, compute, layout[-1]) for compute in ("fp32", "fp64"))
    with torch.backends.mkldnn.flags(enabled=False):
        other, _ = unequal.plain(ranks, "fp32", layout[-1])
    assert one.norms[3] == 0 and one.losses[3] == 0 and all(norm > 0 for norm in [*one.norms[:3], one.norms[4]])
    row = compare(Trace.load(folder / f"trace{number}.pt"), one, [precise, other], dtype="fp32")
    assert row["passed"], (layout, row)
    load.balance(rate=0.1)
    told = load.scalars()
    shares, scalars = json.loads((folder / f"load{number}.json").read_text())
    torch.testing.assert_close(torch.tensor(shares), load.shares, rtol=0, atol=0)
    assert scalars == told
