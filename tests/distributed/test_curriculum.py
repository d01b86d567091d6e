"""A run with a curriculum by running loss, in growing crops and stages, killed and resumed, ends as if nothing had happened."""

import signal

import launches
import pytest
import yaml

SETS = ["training.steps=16", "training.checkpoint_every=3", "training.log_every=1", "training.global_batch=4"]
CURRICULUM = {
    "difficulty": "loss",
    "every": 4,
    "subjects": {"start": 25, "steps": 12, "by": 25},
    "crop": {"start": 50, "steps": 10, "by": 25},
    "stages": [{"tasks": ["ball"], "data": {"augment": False}}, {"from_step": 7}],
}


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"data": {"patch": [32, 24, 32]}, "curriculum": CURRICULUM}))
    return path


def command(shards, run, config, ranks=2, sets=()):
    ds_config = launches.ROOT / "ds_configs/tiny.json"
    return launches.train_command(ranks, data=shards, run=run, ds_config=ds_config, sets=[*SETS, *sets], config=config)


def course(run) -> dict[str, list[float]]:
    """What the log tells of the curriculum, by step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run)).Reload()
    return {
        name: [event.value for event in sorted(events.Scalars(f"curriculum/{name}"), key=lambda e: e.step)]
        for name in ("subjects", "crop", "stage")
    }


@pytest.mark.timeout(300)
def test_killed_run_resumes_and_ends_the_same(shards, config, tmp_path):
    """Killed after step 6 or later: within a stretch, between two turns of the curriculum."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    launches.run(command(shards, whole, config), tmp_path / "whole.log")
    told = course(whole)
    assert told["stage"] == [0.0] * 7 + [1.0] * 9  # step 8 is the first after 7 steps
    assert told["crop"][0] == 50 and told["crop"][-1] == 100 and told["crop"] == sorted(told["crop"])
    assert told["subjects"][:4] == [8] * 4 and min(told["subjects"]) == 4 and told["subjects"][-1] == 8
    with launches.started(command(shards, broken, config), tmp_path / "killed.log") as (process, children):
        launches.wait_for(lambda: (broken / "checkpoints/step000006").exists(), timeout_s=120, what="the second checkpoint")
        for p in list(children().values()):
            if "launch/train.py" in " ".join(p.cmdline()) and "deepspeed.launcher.launch" not in " ".join(p.cmdline()):
                p.send_signal(signal.SIGKILL)
        assert process.wait(timeout=60) != 0
    assert not (broken / "model.safetensors").exists()
    assert "resuming from step" in launches.run(command(shards, broken, config), tmp_path / "resumed.log")
    expected, got = launches.losses(whole), launches.losses(broken)
    assert list(got) == list(range(1, 17))
    assert list(got.values()) == pytest.approx(list(expected.values()), rel=1e-5)


@pytest.mark.timeout(300)
def test_one_rank_sees_the_same_curriculum_as_two(shards, config, tmp_path):
    """Without drop path, whose dice are a rank's own, and at a small learning rate, at which rounding does not grow."""
    one, two = tmp_path / "one", tmp_path / "two"
    sets = ["model.drop_path=0", "training.lr=0.0002"]
    launches.run(command(shards, one, config, ranks=1, sets=sets), tmp_path / "one.log")
    launches.run(command(shards, two, config, sets=sets), tmp_path / "two.log")
    assert course(one) == course(two)
    assert list(launches.losses(one).values()) == pytest.approx(list(launches.losses(two).values()), rel=1e-5)
