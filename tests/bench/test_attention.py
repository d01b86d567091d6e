"""`mri-ds bench attention`: what it reports, its fit, and its memory against what tensors must take."""

import json

import pytest

from mri_ds.bench.attention import bench_attention, line


@pytest.fixture(scope="module")
def result():
    return bench_attention(edges=(8, 12, 16), dim=64, heads=2, limit_s=1e9)


def test_every_grid_has_its_row(result):
    for kind in ("windowed", "full"):
        assert [row["tokens"] for row in result[kind]] == [512, 1728, 4096]
        assert all(row["pass_ms"] > 0 and row["train_ms"] > 0 and row["backends"] == ["flash"] for row in result[kind])
    assert not result["left_out"] and set(result["passed"]) == {"pass_ms", "train_ms"}


def test_memory_is_at_least_that_of_the_tensors_that_must_be_there(result):
    tensor = 4096 * 64 * 4  # bytes of the largest grid's tokens; a forward pass makes 3 for qkv and 1 to return
    for kind in ("windowed", "full"):
        assert 4 * tensor < result[kind][-1]["pass_bytes"] < 40 * tensor, result[kind]
        assert result[kind][-1]["train_bytes"] > result[kind][-1]["pass_bytes"] > 0


def test_full_attention_stops_where_it_would_take_too_long():
    told = bench_attention(edges=(4, 6, 8), dim=16, heads=1, limit_s=0)
    assert [row["edge"] for row in told["full"]] == [4]  # nothing is known before the first
    assert [row["edge"] for row in told["left_out"]] == [6, 8] and "more than 0" in told["left_out"][0]["reason"]


def test_line_by_hand():
    assert line([(1, 5.0), (2, 7.0), (4, 11.0)]) == pytest.approx({"fixed": 3, "each": 2, "largest_deviation": 0}, abs=1e-9)
    assert line([(n, float(n * n)) for n in (1, 2, 4, 8)])["largest_deviation"] > 0.15  # a square is no line


def test_the_command_prints_one_object_or_a_table_and_fails_beyond_the_target(capfd, monkeypatch):
    import mri_ds.bench.attention
    from mri_ds.cli.main import app

    row = {"edge": 8, "tokens": 512, "pass_ms": 1.0, "train_ms": 2.0, "pass_bytes": 4, "train_bytes": 8, "backends": ["flash"]}
    fit = {"fixed": 0.0, "each": 1.0, "largest_deviation": 0.2}
    facts = {
        "windowed": [row], "full": [row], "left_out": [{"edge": 64, "reason": "too long"}],
        "fits": {"windowed": {"train_ms": fit}, "full": {"train_ms": 2.0}}, "passed": {"train_ms": False},
    }  # fmt: skip
    monkeypatch.setattr(mri_ds.bench.attention, "bench_attention", lambda **options: facts | {"edges": options["edges"]})
    assert app(["bench", "attention", "--edges", "8,16,32", "--json"], standalone_mode=False) == 1
    assert json.loads(capfd.readouterr().out) == facts | {"edges": [8, 16, 32]}
    facts["passed"] = {"train_ms": True}
    app(["bench", "attention"], standalone_mode=False)
    assert "windowed 8^3" in (table := capfd.readouterr().out) and "full 64^3 left out: too long" in table


@pytest.mark.parametrize("edges", ["8,x", "0,1,2", "8,8,8", "2,8,16"])
def test_bad_grids_are_named(edges, capfd):
    from mri_ds.cli.main import app

    assert app(["bench", "attention", "--edges", edges], standalone_mode=False) == 2
    told = capfd.readouterr().err
    assert told.count("\n") == 1 and told.startswith(("error: --edges", "error: grids [")) and "Fix: " in told
