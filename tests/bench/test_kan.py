"""`mri-ds bench kan`: what it reports, and that both sides compute the same."""

import json

import pytest
import torch

from mri_ds.bench.dense_kan import DenseKANLayer
from mri_ds.bench.kan import bench_kan
from mri_ds.nn.kan import OptimizedKANLayer
from mri_ds.nn.spline import bspline_basis


def test_less_memory_than_the_dense_layer_and_every_row_is_there():
    seen = []
    # several blocks of rows: where all rows fit into one, ours forms the whole dense block too
    result = bench_kan(
        rows=2048, in_features=128, out_features=32, rounds=1, progress=lambda done, total: seen.append((done, total))
    )
    for dtype in ("float32", "bfloat16"):
        row = result[dtype]
        assert row["ours"]["ms"] > 0 and row["dense"]["ms"] > 0
        assert row["memory_ratio"] > 2
    assert result["float32"]["largest_difference"] < 1e-5
    assert set(result["heads"]["ms"]) >= {"one_after_another", "together"}
    assert seen[-1][0] == seen[-1][1]


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_dense_bases_are_those_of_the_recursion(degree):
    layer = OptimizedKANLayer(2, 3, grid_size=5, degree=degree).double()
    dense = DenseKANLayer(layer.grid, layer.coefficients, layer.linear.weight, layer.linear.bias)
    x = 3.9 * torch.rand(40, 2, dtype=torch.float64) - 1.95
    expected = bspline_basis(x, layer.grid.knots(), degree)
    torch.testing.assert_close(dense.bases(x), expected, rtol=0, atol=1e-12)


def test_the_command_prints_one_object_or_a_table(capfd, monkeypatch):
    import mri_ds.bench.kan
    from mri_ds.cli.main import app

    row = {
        "ours": {"ms": 2.0, "peak_bytes": 2**20},
        "dense": {"ms": 14.0, "peak_bytes": 2**22},
        "time_ratio": 7.0,
        "memory_ratio": 4.0,
    }
    heads = {"num_tasks": 8, "ms": {"one_after_another": 5.0, "together": 1.0}}
    facts = {"float32": row, "bfloat16": row, "heads": heads}
    monkeypatch.setattr(mri_ds.bench.kan, "bench_kan", lambda **options: facts | {"rows": options["rows"]})
    app(["bench", "kan", "--rows", "32", "--json"], standalone_mode=False)
    assert json.loads(capfd.readouterr().out) == facts | {"rows": 32}
    app(["bench", "kan"], standalone_mode=False)
    assert "8 heads, together: 1.00 ms" in (table := capfd.readouterr().out) and "7.0x" in table
