"""A run with a curriculum by running loss, in growing crops and stages, killed and resumed, ends as if nothing had happened."""

import forked
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


def settings(shards, run, config, sets=()):
    ds_config = launches.ROOT / "ds_configs/tiny.json"
    return {"data": shards, "run": run, "ds_config": ds_config, "sets": [*SETS, *sets], "config": config}


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
    forked.train(2, tmp_path / "whole.log", **settings(shards, whole, config))
    told = course(whole)
    assert told["stage"] == [0.0] * 7 + [1.0] * 9  # step 8 is the first after 7 steps
    assert told["crop"][0] == 50 and told["crop"][-1] == 100 and told["crop"] == sorted(told["crop"])
    assert told["subjects"][:4] == [8] * 4 and min(told["subjects"]) == 4 and told["subjects"][-1] == 8
    options = launches.train_options(**settings(shards, broken, config))
    with forked.started(2, tmp_path / "killed.log", forked.command, options) as ranks:
        launches.wait_for(lambda: (broken / "checkpoints/step000006").exists(), timeout_s=120, what="the second checkpoint")
        assert all(rank.is_alive() for rank in ranks)
        for rank in ranks:
            rank.kill()
    assert not (broken / "model.safetensors").exists()
    assert "resuming from step" in forked.train(2, tmp_path / "resumed.log", **settings(shards, broken, config))
    expected, got = launches.losses(whole), launches.losses(broken)
    assert list(got) == list(range(1, 17))
    assert list(got.values()) == pytest.approx(list(expected.values()), rel=1e-5)


@pytest.mark.timeout(300)
def test_one_rank_sees_the_same_curriculum_as_two(shards, config, tmp_path):
    """Without drop path, whose dice are a rank's own, and at a small learning rate, at which rounding does not grow."""
    one, two = tmp_path / "one", tmp_path / "two"
    sets = ["model.drop_path=0", "training.lr=0.0002"]
    forked.train(1, tmp_path / "one.log", **settings(shards, one, config, sets))
    forked.train(2, tmp_path / "two.log", **settings(shards, two, config, sets))
    assert course(one) == course(two)
    assert list(launches.losses(one).values()) == pytest.approx(list(launches.losses(two).values()), rel=1e-5)
