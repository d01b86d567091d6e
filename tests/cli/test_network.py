"""`mri-ds info`: the promised sizes, for machines and for people."""

import json

import pytest
from commands import call


@pytest.mark.parametrize(
    ("scale", "millions", "gigaflops", "gigabytes"),
    [("small", 32, 124, 1.18), ("base", 85, 334, 2.04), ("large", 200, 1211, 4.43), ("xl", 500, 2448, 9.98)],  # as the README
)
def test_scales_have_their_promised_size(scale: str, millions: int, gigaflops: float, gigabytes: float) -> None:
    result = call("info", "--scale", scale, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["parameters_total"] == pytest.approx(millions * 1e6, rel=0.03)
    assert 0 < facts["parameters_active"] < facts["parameters_total"]
    assert facts["volume"] == [128, 128, 128] and facts["flops_volume"] == pytest.approx(gigaflops * 1e9, rel=0.03)
    assert facts["training_bytes"] == pytest.approx(gigabytes * 1e9, rel=0.05)


def test_people_get_one_fact_a_line() -> None:
    result = call("info", "--scale", "tiny")
    facts = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert facts["scale"] == "tiny"
    assert int(facts["parameters_total"].replace(",", "")) > 1000


def test_unknown_scale() -> None:
    result = call("info", "--scale", "smal")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert "'smal'" in result.stderr
