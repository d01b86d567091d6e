"""`mri-ds bench network` and `bench moe`: real steps in real processes, and the arithmetic of what is told."""

import json

import pytest
from typer.testing import CliRunner

from mri_ds.bench.moe import bench_moe
from mri_ds.bench.network import TARGETS, bench_network, judged
from mri_ds.bench.peers import build_peer, num_stages


@pytest.mark.timeout(400)
def test_a_turn_of_ours_and_of_a_peer():
    """`tiny` through DeepSpeed's engine, nnU-Net's network under autocast; FLOPs of the peer held against its layers by hand."""
    told = bench_network(contenders=("tiny", "PlainConvUNet"), patch=32, steps=1, rounds=1)
    assert list(told["contenders"]) == ["tiny", "PlainConvUNet"] and not told["passed"]
    for row in told["contenders"].values():
        assert row["voxels_per_s"] * row["step_s"] == pytest.approx(32**3)
        assert row["share_of_products"] * told["product_flops_per_s"] * row["step_s"] == pytest.approx(row["flops"])
        assert row["peak_bytes"] > 4 * row["parameters"]  # weights, at the very least
    assert told["contenders"]["PlainConvUNet"]["flops"] == 3 * flops_by_hand()


def flops_by_hand() -> int:
    """Forward: two 3^3 convolutions a stage on the way down, a 2^3 transposed one and two 3^3 a stage up, 1^3 to four classes."""
    features, sides = (32, 64, 128, 256), (32, 16, 8, 4)
    assert num_stages(32) == 4
    total, inputs = 0, 1
    for width, side in zip(features, sides):
        total += 2 * side**3 * 27 * (inputs * width + width * width)
        inputs = width
    for below, width, side in zip(features[:0:-1], features[-2::-1], sides[-2::-1]):
        total += 2 * side**3 * below * width  # each voxel comes from one below, by one tap of the kernel
        total += 2 * side**3 * 27 * (2 * width * width + width * width)
    return total + 2 * 32**3 * features[0] * 4


def test_ratios_of_given_times():
    rows = {
        "small": {"step_s": 1.0, "cpu_s": 2.0},
        "SwinUNETR": {"step_s": 4.5, "cpu_s": 9.0},
        "PlainConvUNet": {"step_s": 1.9, "cpu_s": 3.8},
        "UNETR": {"absent": "UNETR needs monai"},
    }
    told = judged(rows, holds=True)
    assert told["small_is"] == {"SwinUNETR": {"wall": 4.5, "cpu": 4.5}, "PlainConvUNet": {"wall": 1.9, "cpu": 1.9}}
    assert told["passed"] == {"SwinUNETR": True, "PlainConvUNet": False} and set(TARGETS) == {*rows} - {"small"}
    assert judged(rows, holds=False)["passed"] == {}  # other patches have no target


@pytest.mark.parametrize(("patch", "stages"), [(32, 4), (64, 5), (96, 5), (128, 6), (256, 6)])
def test_stages_as_the_planner_has_them(patch, stages):
    assert num_stages(patch) == stages


def test_a_package_that_is_not_there_is_named(monkeypatch):
    import sys

    for name in [name for name in sys.modules if name.startswith("dynamic_network_architectures")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "dynamic_network_architectures", None)
    with pytest.raises(ValueError, match=r"PlainConvUNet needs dynamic_network_architectures\. Fix: pip install --no-deps"):
        build_peer("PlainConvUNet", patch=32, num_classes=4)


def test_moe_tells_a_row_for_each_scale(capfd):
    told = bench_moe(scales=["tiny"], tokens=64, rounds=3)
    row = told["scales"]["tiny"]
    assert (row["dim"], row["num_experts"], row["expert_hidden"]) == (32, 4, 32) and told["passed"] == {}
    assert row["wall_ratio"] == row["moe_ms"] / row["dense_ms"] and row["cpu_ratio"] > 0


@pytest.mark.parametrize(
    "options",
    [
        ["network", "--contenders", "small,ResNet"],
        ["network", "--patch", "40"],
        ["network", "--dtype", "half"],
        ["moe", "--scales", "huge"],
    ],
)
def test_bad_options_are_named(options):
    from mri_ds.cli.main import app

    done = CliRunner().invoke(app, ["bench", *options])
    assert done.exit_code == 2 and done.stderr.count("\n") == 1 and "Fix: " in done.stderr


def test_the_command_prints_one_object_or_a_table_and_fails_beyond_a_target(capfd, monkeypatch):
    import mri_ds.bench.network
    from mri_ds.cli.main import app

    row = {
        "step_s": 2.0, "cpu_s": 4.0, "voxels_per_s": 5e5, "peak_bytes": 2**20, "share_of_products": 0.1, "parameters": 1,
    }  # fmt: skip
    facts = {
        "patch": 96, "batch": 1, "dtype": "bfloat16", "contenders": {"small": row, "UNETR": {"absent": "UNETR needs monai."}},
        "small_is": {}, "targets": TARGETS, "passed": {"SwinUNETR": False},
    }  # fmt: skip
    monkeypatch.setattr(mri_ds.bench.network, "bench_network", lambda **options: facts)
    assert app(["bench", "network", "--json"], standalone_mode=False) == 1
    assert json.loads(capfd.readouterr().out) == facts
    facts["passed"] = {}
    app(["bench", "network"], standalone_mode=False)
    assert "10.0%" in (table := capfd.readouterr().out) and "UNETR needs monai" in table
