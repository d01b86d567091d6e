"""A run that is killed on both ranks goes on from its last checkpoint and ends as if nothing had happened; another may not."""

import signal
import subprocess

import launches
import pytest

SETS = ["training.steps=24", "training.checkpoint_every=4", "training.log_every=1", "training.global_batch=4"]


def command(shards, run, *, ranks=2, more=()):
    ds_config = launches.ROOT / "ds_configs/tiny.json"
    return launches.train_command(ranks, data=shards, run=run, ds_config=ds_config, sets=[*SETS, *more])


@pytest.mark.timeout(300)
def test_killed_run_resumes_and_ends_the_same_and_no_other_goes_on_from_it(shards, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    launches.run(command(shards, whole), tmp_path / "whole.log")
    with launches.started(command(shards, broken), tmp_path / "killed.log") as (process, children):
        launches.wait_for(lambda: (broken / "checkpoints/step000008").exists(), timeout_s=120, what="the second checkpoint")
        ranks = [
            p
            for p in children().values()
            if "launch/train.py" in " ".join(p.cmdline()) and "--local_rank" in " ".join(p.cmdline())
        ]
        ranks = [p for p in ranks if "deepspeed.launcher.launch" not in " ".join(p.cmdline()) and p.name() != "pt_data_worker"]
        assert len(ranks) == 2
        for p in ranks:
            p.send_signal(signal.SIGKILL)
        assert process.wait(timeout=60) != 0
    assert not (broken / "model.safetensors").exists()
    text = launches.run(command(shards, broken), tmp_path / "resumed.log")
    assert "resuming from step" in text
    expected, got = launches.losses(whole), launches.losses(broken)
    assert list(got) == list(range(1, 25))  # no step lost, none twice
    assert list(got.values()) == pytest.approx(list(expected.values()), rel=1e-5)
    other = command(shards, broken, ranks=1, more=["training.lr=0.5"])
    done = subprocess.run(other, capture_output=True, text=True, env=launches.environment(), cwd=launches.ROOT, timeout=120)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: ") and "another configuration" in done.stderr
