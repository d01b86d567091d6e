"""ZeRO-3 without hooks and messages that do nothing, on two real ranks: the same numbers, and it is nothing that was left out."""

import json
from pathlib import Path

import launches
import pytest

from mri_ds.training.parity.launch import wait_for_ranks

THRESHOLDS = ("10000000", "300")


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resident")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in launches.environment().items():
            patch.setenv(name, value)
        program = [str(Path(__file__).with_name("resident_ranks.py"))]
        failure = wait_for_ranks(folder, 2, program=program, ended=lambda: 0, progress=lambda done: None)
    assert not failure, failure
    return json.loads((folder / "told.json").read_text())


@pytest.mark.timeout(600)
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_every_number_is_deepspeeds_own(told, threshold):
    """Losses, gradients, norms of three updates; weights sharded in between are fetched again, also for the net alone.

    Not to the last digit: where a tensor has several readers, each wrapping sums their gradients in an order of its own.
    """
    spared, as_it_is = told[f"{threshold}, spared"], told[f"{threshold}, as it is"]
    for mine, other in zip(spared["steps"], as_it_is["steps"], strict=True):
        assert mine == pytest.approx(other, rel=1e-5)
    assert spared["predicted"] == pytest.approx(as_it_is["predicted"], rel=1e-5) and spared["predicted"] > 0
    assert abs(spared["steps"][0][0] / spared["steps"][2][0] - 1) > 1e-2, "the updates must be told apart"


def test_where_all_is_resident_only_the_outermost_module_is_wrapped(told):
    assert told["10000000, spared"]["hooked"] == [""]
    assert len(told["10000000, as it is"]["hooked"]) > 50


def test_modules_whose_weights_are_fetched_stay_wrapped(told):
    row = told["300, spared"]
    assert row["resident"] and len(row["hooked"]) < len(told["300, as it is"]["hooked"])
    assert {"net.encoder.blocks.0.moe.experts", "net.encoder.blocks.1.moe.experts"} < set(row["hooked"])


def test_no_rank_reduces_with_itself(told):
    for threshold in THRESHOLDS:
        spared, as_it_is = told[f"{threshold}, spared"], told[f"{threshold}, as it is"]
        assert spared["alone"] == 0 < as_it_is["alone"]
        assert spared["together"] == as_it_is["together"] > 0
