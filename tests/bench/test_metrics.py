"""`mri-ds bench metrics`: that ours is the faster one at equal values, and where its masks come from."""

import json

import numpy as np
import pytest

from mri_ds.errors import InputError

pytest.importorskip("monai", reason="MONAI, the other side of the comparison, is not installed")


def test_at_least_three_times_as_fast_as_monai(capfd):
    """CPU time, in turns, in one process; a value of MONAI's that differs ends it with a failure."""
    from mri_ds.cli.main import app

    app(["bench", "metrics", "--size", "40", "--masks", "20", "--repeats", "2", "--json"], standalone_mode=False)
    result = json.loads(capfd.readouterr().out)
    assert result["masks"] == 20 and result["figures"]["cpu_ratio"] >= 3 and result["passed"], result
    for kind in ("figures", "with_area"):
        assert all(result[kind][who][clock] > 0 for who in ("ours", "monai") for clock in ("cpu_ms", "wall_ms"))


def test_masks_of_a_folder_and_people_read_a_table(tmp_path, capfd, monkeypatch):
    import mri_ds.bench.metrics
    from mri_ds.bench.metrics import bench_metrics, mask_pairs
    from mri_ds.cli.main import app
    from mri_ds.data.nifti import write_label

    (tmp_path / "labels").mkdir()
    label = np.zeros((14, 12, 10), dtype=np.int16)
    label[2:7, 2:8, :6], label[8:12, 3:9, 4:] = 1, 5
    write_label(tmp_path / "labels" / "a.nii.gz", label, np.diag([1.0, 1.0, 2.5, 1.0]))
    pairs = list(mask_pairs(tmp_path))
    assert [pair.name for pair in pairs] == ["a.nii.gz:1", "a.nii.gz:5"] and pairs[0].spacing_mm == (1.0, 1.0, 2.5)
    assert all((pair.truth & pair.prediction).any() and (pair.truth ^ pair.prediction).any() for pair in pairs)
    app(["bench", "metrics", "--data", str(tmp_path), "--repeats", "1"], standalone_mode=False)
    assert "HD95, ASSD, surface Dice" in capfd.readouterr().out
    with pytest.raises(InputError, match="holds no label map"):
        bench_metrics(tmp_path / "nothing")
    monkeypatch.setattr(mri_ds.bench.metrics, "_ours", lambda pair, with_area: (0.0, 0.0, 0.0))
    with pytest.raises(RuntimeError, match="MONAI"):
        bench_metrics(tmp_path, repeats=1)
