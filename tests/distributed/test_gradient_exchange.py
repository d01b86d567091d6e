"""The sum over three real ranks of which each gets its part: of half precision rounded once, whatever the number of ranks."""

import exchange_ranks
import forked
import pytest


@pytest.mark.timeout(300)
def test_every_rank_gets_its_part_of_the_sum(tmp_path):
    codes = forked.start(3, tmp_path / "log", exchange_ranks.main, timeout_s=200)
    assert codes == [0, 0, 0], (tmp_path / "log").read_text()[-3000:]
