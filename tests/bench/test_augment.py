"""`mri-ds bench augment`: what it reports, and that ours is the faster one."""

import json
import sys

import pytest

from mri_ds.augment.transform import AUGMENTS

pytest.importorskip("monai", reason="MONAI, the other side of the comparison, is not installed")


def test_at_least_twice_as_fast_as_monai_and_every_row_is_there():
    """CPU time, in turns, in one process: 48^3 keeps it short; `mri-ds bench augment` does 96^3."""
    from mri_ds.bench.augment import bench_augment

    seen = []
    result = bench_augment(size=48, repeats=3, progress=lambda done, total: seen.append((done, total)))
    assert result["together"]["cpu_ratio"] > 2 and result["configured"]["cpu_ratio"] > 2, result
    assert list(result["apart"]) == list(AUGMENTS) and seen[-1] == (len(AUGMENTS) + 2, len(AUGMENTS) + 2)
    alone = {name for name, row in result["apart"].items() if "monai" not in row}
    assert alone == {"motion", "ghosting", "channel_dropout"}
    assert all(row["ours"]["cpu_ms"] > 0 for row in result["apart"].values())


def test_monai_does_what_it_is_timed_for():
    """Each of its transforms, alone at chance 1, changes the image and keeps the crop's size."""
    import numpy as np
    import torch
    from monai import transforms

    from mri_ds.bench.augment import _compose, _peers

    image = torch.randn(1, 20, 20, 20)
    label = torch.randint(0, 3, (1, 20, 20, 20), dtype=torch.int16)
    for name, group in _peers(transforms, dict.fromkeys(AUGMENTS, 1.0)).items():
        varied = _compose(transforms, group, seed=3)({"image": image.clone(), "label": label.clone()})
        assert varied["image"].shape == image.shape and set(np.unique(varied["label"])) <= {0, 1, 2}, name
        assert not torch.equal(torch.as_tensor(varied["image"]), image), name


def test_the_command_prints_one_object_or_a_table(capfd, monkeypatch):
    import mri_ds.bench.augment
    from mri_ds.cli.main import app

    row = {"ours": {"cpu_ms": 2.0, "wall_ms": 2.0}, "monai": {"cpu_ms": 8.0, "wall_ms": 9.0}, "cpu_ratio": 4.0, "wall_ratio": 4.5}
    facts = {"together": row, "configured": row, "apart": {"gamma": row, "motion": {"ours": row["ours"]}}}
    monkeypatch.setattr(mri_ds.bench.augment, "bench_augment", lambda **options: facts | {"size": options["size"]})
    app(["bench", "augment", "--size", "32", "--json"], standalone_mode=False)
    assert json.loads(capfd.readouterr().out) == facts | {"size": 32}
    app(["bench", "augment"], standalone_mode=False)
    assert "gamma" in (table := capfd.readouterr().out) and "4.0x" in table


def test_without_monai_it_says_how_to_get_it(monkeypatch):
    from mri_ds.bench.augment import bench_augment
    from mri_ds.errors import InputError

    monkeypatch.setitem(sys.modules, "monai", None)
    with pytest.raises(InputError, match="pip install"):
        bench_augment(size=16)
