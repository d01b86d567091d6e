"""Stochastic depth that skips dropped samples, under ZeRO-3 and expert parallelism: ranks drop different samples, and none hangs.

One rank may send no sample through a branch while the other sends two. The oracle is the same run in which all samples are
computed and the dropped ones count 0: the same dice, so the same losses and gradient norms.
"""

import json

import drop_ranks
import forked
import pytest


@pytest.mark.timeout(600)
def test_ranks_that_drop_different_samples_agree_with_computing_all(tmp_path):
    codes = forked.start(2, tmp_path / "log", drop_ranks.main, str(tmp_path), timeout_s=300)  # a hang fails here
    assert codes == [0, 0], (tmp_path / "log").read_text()[-3000:]
    told = [json.loads((tmp_path / f"told{rank}.json").read_text()) for rank in range(2)]
    assert told[0]["zero"] == 3 and told[0]["expert_parallel"] == 2
    for rank in told:
        assert set(rank["computing all"]["seen"]) == {2}
        assert rank["skipping"]["losses"] == pytest.approx(rank["computing all"]["losses"], rel=1e-5)
        assert rank["skipping"]["norms"] == pytest.approx(rank["computing all"]["norms"], rel=1e-4)
    pairs = set(zip(told[0]["skipping"]["seen"], told[1]["skipping"]["seen"], strict=True))
    assert any(a == 0 < b for a, b in pairs) and any(b == 0 < a for a, b in pairs), pairs
