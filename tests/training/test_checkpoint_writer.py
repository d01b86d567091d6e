"""Writing beside the training: copies, checksums, a disk that is full, a process that is killed."""

import hashlib
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from mri_ds.training.checkpoint import folder as on_disk
from mri_ds.training.checkpoint.shards import Shards, load_trusting_nothing
from mri_ds.training.checkpoint.writer import snapshot, write

START = """
import sys, torch
from pathlib import Path
from mri_ds.errors import RunError
from mri_ds.training.checkpoint import folder as on_disk
from mri_ds.training.checkpoint.writer import Writer

run = Path(sys.argv[1])
def save(step, content):
    part = on_disk.folder_of(run, step).with_suffix(".part")
    part.mkdir(parents=True)
    writer.submit(part, {"small.bin": b"fits", "weights.pt": content}, lambda files: on_disk.commit(part, files, {"step": step}))
writer = Writer()
save(1, torch.zeros(1000))
writer.wait()
"""


def test_a_file_is_what_its_checksum_says(tmp_path):
    told = write(tmp_path / "a.pt", {"w": torch.arange(5.0)})
    content = (tmp_path / "a.pt").read_bytes()
    assert told == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert torch.equal(torch.load(tmp_path / "a.pt", weights_only=True)["w"], torch.arange(5.0))


def test_a_snapshot_does_not_follow_the_training():
    big = torch.arange(1000.0)
    state = {"view": big[10:12], "nested": [{"step": torch.tensor(3.0)}], "size": torch.Size([2]), "name": "x"}
    copy = snapshot(state)
    big.zero_()
    state["nested"][0]["step"] += 1
    assert copy["view"].tolist() == [10.0, 11.0] and copy["view"].untyped_storage().nbytes() == 8
    assert copy["nested"][0]["step"] == 3 and copy["size"] == torch.Size([2]) and copy["name"] == "x"


def test_a_full_disk_leaves_the_last_good_one_and_says_so(tmp_path):
    """A file system of 4 MB of its own, in a mount namespace."""
    code = START + (
        "save(2, torch.zeros(4_000_000))\n"
        "try:\n    writer.wait()\n"
        "except RunError as err:\n    print(err)\n"
        "print(sorted(p.name for p in (run / 'checkpoints').iterdir()), (run / 'checkpoints/latest').read_text())\n"
    )
    mount = f'mount -t tmpfs -o size=4m tmpfs {tmp_path} && exec {sys.executable} -c "$0" {tmp_path}'
    done = subprocess.run(["unshare", "-rm", "sh", "-c", mount, code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said, left = done.stdout.strip().splitlines()
    assert said.startswith("rank 0 cannot write the checkpoint step000002: No space left on device: ")
    assert said.endswith("step000002.part/weights.pt")
    assert left == "['latest', 'step000001'] step000001"


def test_a_killed_write_shadows_nothing(tmp_path):
    code = START + "save(2, [torch.zeros(1_000_000) for _ in range(150)])\nwriter.wait()\n"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    try:
        part = tmp_path / "checkpoints/step000002.part/weights.pt"
        end = time.monotonic() + 100
        while not (part.is_file() and part.stat().st_size > 1e6):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert [p.name for p in on_disk.complete(tmp_path)] == ["step000001"]
    on_disk.remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["latest", "step000001"]


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


def test_a_pickle_that_calls_is_not_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"optimizer_state_dict": Evil()}, tmp_path / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    with pytest.raises(Exception, match="system"):
        Shards().load(str(tmp_path / "zero_pp_rank_0_mp_rank_00_optim_states.pt"))
    assert not (tmp_path / "evil").exists()


def test_deepspeeds_own_classes_load(tmp_path):
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler
    from deepspeed.utils.tensor_fragment import fragment_address

    scaler = DynamicLossScaler(init_scale=2.0**8, scale_window=100, min_scale=1, delayed_shift=1, consecutive_hysteresis=False)
    torch.save({"loss_scaler": scaler, "slice": fragment_address(numel=3, start=1)}, tmp_path / "a.pt")
    loaded = load_trusting_nothing(tmp_path / "a.pt")
    assert loaded["loss_scaler"].cur_scale == 256 and loaded["slice"].numel == 3
