"""Two real ranks, by torchrun and by deepspeed: they deal out subjects, or share the windows of one; every byte as from one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from networks import write_image, write_run

from mri_ds.training.launchers import free_port


@pytest.mark.timeout(900)
def test_two_ranks_write_what_one_writes(tmp_path):
    run = write_run(tmp_path / "run")
    for name in ("a", "b", "c"):
        write_image(tmp_path / f"images/{name}.nii.gz", seed=ord(name), shape=(30, 21, 37))
    nib.save(nib.Nifti1Image(np.ones((8, 8, 8), dtype=np.float32), np.eye(4)), tmp_path / "images/flat.nii.gz")
    given = ["--checkpoint", str(run), "--probabilities", "--tta", "2", "--input"]

    def jobs(kind: str) -> list[list[str]]:
        """Four subjects, of which one fails; one alone; one that fails, alone."""
        return [
            ["--output", str(tmp_path / kind / "subjects"), "--json", *given, str(tmp_path / "images")],
            ["--output", str(tmp_path / kind / "windows"), "--json", *given, str(tmp_path / "images/c.nii.gz")],
            ["--output", str(tmp_path / kind / "none"), "--json", *given, str(tmp_path / "images/flat.nii.gz")],
        ]

    environ = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")}
    environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    deepspeed = [str(Path(sys.executable).with_name("deepspeed")), "--num_accelerators", "2", "--master_port", str(free_port())]
    outputs = {}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    for kind, launcher in (("one", [sys.executable]), ("two", torchrun), ("deepspeed", deepspeed)):
        ranks = 1 if kind == "one" else 2
        (tmp_path / f"{kind}.json").write_text(json.dumps(jobs(kind)))
        script = [
            str(Path(__file__).with_name("predict_ranks.py")),
            str(tmp_path / f"{kind}.json"),
            str(tmp_path / f"{kind}.codes"),
        ]
        done = subprocess.run([*launcher, *script], env=environ, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-4000:]
        assert [json.loads((tmp_path / f"{kind}.codes.{rank}").read_text()) for rank in range(ranks)] == [[1, 0, 2]] * ranks
        outputs[kind] = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        assert "constant" in done.stderr and (launcher == deepspeed or "deepspeed" not in done.stderr)
    one, two, by_deepspeed = (
        {p.relative_to(tmp_path / kind): p.read_bytes() for p in (tmp_path / kind).rglob("*.*")}
        for kind in ("one", "two", "deepspeed")
    )
    assert by_deepspeed == one
    told = [[(one["subject_id"], one["tasks"]) for one in told["subjects"]] for told in outputs["deepspeed"]]
    assert told == [[(one["subject_id"], one["tasks"]) for one in told["subjects"]] for told in outputs["one"]]
    assert one.keys() == two.keys() and len(one) == 4 * 4 + 2 + 0
    assert [name for name in one if one[name] != two[name]] == []
    assert [told["failed"].keys() for told in outputs["two"]] == [{"flat"}, set()]
    told = [[(one["subject_id"], one["tasks"]) for one in told["subjects"]] for told in outputs["two"]]
    assert told == [[(one["subject_id"], one["tasks"]) for one in told["subjects"]] for told in outputs["one"]]
    assert [name for name, _ in told[0]] == ["a", "b", "c"]
    labels = np.asarray(nib.load(tmp_path / "two/windows/c_tissue.nii.gz").dataobj)
    assert len(np.unique(labels)) > 1
