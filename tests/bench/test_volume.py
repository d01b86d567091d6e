"""`mri-ds bench volume`: what it reports, and when it fails."""

import json

import pytest

from mri_ds.bench.volume import bench_volume


def test_a_volume_has_its_row_and_the_peak_holds_what_must_be_there():
    told = bench_volume(scale="tiny", edges=(24, 40), classes=3)
    for row, edge in zip(told["rows"], (24, 40), strict=True):
        assert row["edge"] == edge and row["outputs"] == {"tissue": [1, 3, edge, edge, edge], "age": [1]}
        assert row["is_finite"] and row["seconds"] > 0 and row["cpu_seconds"] > 0
        assert row["peak_bytes"] > 2 * told["parameters"] and row["peak_bytes"] >= row["before_bytes"] > 0


def test_the_command_fails_above_its_limit(capfd, monkeypatch):
    import mri_ds.bench.volume
    from mri_ds.cli.main import app

    row = {"edge": 64, "peak_bytes": 3 * 2**30, "before_bytes": 2**30, "seconds": 1.0, "cpu_seconds": 2.0, "is_finite": True}
    monkeypatch.setattr(mri_ds.bench.volume, "bench_volume", lambda **options: {"rows": [row], "scale": options["scale"]})
    command = ["bench", "volume", "--scale", "base", "--edges", "64"]
    assert app([*command, "--limit-gib", "2.5", "--json"], standalone_mode=False) == 1
    told = json.loads(capfd.readouterr().out)
    assert told == {"rows": [row], "scale": "base", "limit_bytes": 5 * 2**29, "passed": False}
    assert not app([*command, "--limit-gib", "3"], standalone_mode=False)
    assert "64^3" in capfd.readouterr().out


@pytest.mark.parametrize(
    "options", [["--edges", "64,32"], ["--edges", "4"], ["--edges", "x"], ["--dtype", "fp8"], ["--scale", "s"]]
)
def test_bad_options_are_named(options, capfd):
    from mri_ds.cli.main import app

    assert app(["bench", "volume", *options], standalone_mode=False) == 2
    assert (told := capfd.readouterr().err).count("\n") == 1 and told.startswith("error: ")
