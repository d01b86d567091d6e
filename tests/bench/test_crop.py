"""The benchmark of crops: both read the same voxels; its figures are what they say."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from mri_ds.bench import crop
from mri_ds.cli.main import app
from mri_ds.errors import InputError


def test_the_command_prints_one_object():
    result = CliRunner().invoke(app, ["bench", "crop", "--size", "96", "--crop", "32", "--repeats", "3", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["size"], found["crop"], found["repeats"]) == (96, 32, 3)
    for name in ("mri_ds", "nibabel"):
        row = found[name]
        assert row["share"] == pytest.approx(row["bytes_read"] / row["file_bytes"]) and row["cpu_ms"] > 0 and row["wall_ms"] > 0
    assert 0 < found["mri_ds"]["share"] < 0.5, "at most 2^3 of 3^3 chunks, of which the corners are air"
    assert found["cpu_ratio"] == pytest.approx(found["nibabel"]["cpu_ms"] / found["mri_ds"]["cpu_ms"])


def test_people_read_a_table():
    result = CliRunner().invoke(app, ["bench", "crop", "--size", "32", "--crop", "16", "--repeats", "1"])
    assert result.exit_code == 0 and result.stdout.splitlines()[0].startswith("16^3 of 32^3"), result.output
    assert "times the CPU time" in result.stdout


def test_bytes_are_those_that_were_asked_for(tmp_path):
    (tmp_path / "a").write_bytes(bytes(100_000))
    before = crop._bytes_read()
    with (tmp_path / "a").open("rb", buffering=0) as file:
        file.read(30_000)
    assert 30_000 <= crop._bytes_read() - before < 32_000, "and the counter's own few hundred"


def test_other_voxels_are_a_failure(monkeypatch):
    monkeypatch.setattr(crop, "_nibabel", lambda path, start, size: np.zeros((size, size, size)))
    with pytest.raises(RuntimeError, match="differs"):
        crop.bench_crop(size=16, crop=8, repeats=1)
    with pytest.raises(InputError, match="--crop 32 of --size 16"):
        crop.bench_crop(size=16, crop=32)
