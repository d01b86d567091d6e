"""Training on shards and on synthetic images of label maps at once."""

import launches
import nibabel as nib
import numpy as np
import pytest
import yaml


@pytest.mark.timeout(240)
def test_trains_on_both(shards, tmp_path):
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 24)] * 3, indexing="ij"))
    head = np.where(np.linalg.norm(grid, axis=0) < 0.4, 7, np.where(np.linalg.norm(grid, axis=0) < 0.9, 9, 0))
    maps = tmp_path / "maps"
    maps.mkdir()
    nib.save(nib.Nifti1Image(head.astype(np.int16), np.eye(4)), maps / "a.nii.gz")
    (maps / "labels.yaml").write_text("classes: {ball: [7]}\nflip: true\n")
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump({"data": {"synthesis": {"labels": str(maps), "share": 0.5}}}))
    run = tmp_path / "run"
    sets = ["training.steps=8", "training.log_every=1", "training.global_batch=4", "data.num_workers=1"]
    ds_config = launches.ROOT / "ds_configs/tiny.json"
    launches.run(launches.train_command(1, data=shards, run=run, ds_config=ds_config, sets=sets, config=config), tmp_path / "log")
    losses = list(launches.losses(run).values())
    assert len(losses) == 8 and np.isfinite(losses).all() and (run / "model.safetensors").is_file()
