"""`mri-ds info`: the promised sizes, for machines and for people."""

import json

import pytest
from commands import call


@pytest.mark.parametrize(("scale", "millions"), [("small", 32), ("base", 85), ("large", 200), ("xl", 500)])
def test_scales_have_their_promised_size(scale: str, millions: int) -> None:
    result = call("info", "--scale", scale, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["parameters_total"] == pytest.approx(millions * 1e6, rel=0.03)
    assert 0 < facts["parameters_active"] < facts["parameters_total"]


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
