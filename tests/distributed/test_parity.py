"""One run, many layouts: the losses of two ranks with ZeRO-3 and expert parallelism equal those of one plain rank."""

import json

import forked
import launches
import pytest
from safetensors.torch import load_file

STEPS = 10
SETS = [
    f"training.steps={STEPS}",
    "training.log_every=1",
    "training.global_batch=4",
    "model.drop_path=0",
    "training.image_every=5",
]


@pytest.fixture(scope="module")
def one_rank(shards, tmp_path_factory):
    """Ten steps on one rank: ZeRO 0, no expert parallelism, no recomputation."""
    return train(1, shards, tmp_path_factory.mktemp("one"), zero=0, ep=1, level="none")


def train(ranks, shards, folder, *, zero, ep, level="block", sets=(), micro="auto"):
    raw = json.loads((launches.ROOT / "ds_configs/tiny.json").read_text())
    raw["zero_optimization"]["stage"] = zero
    raw["expert_parallel"]["autoep_size"] = ep
    raw["activation_checkpointing"]["level"] = level
    raw["train_micro_batch_size_per_gpu"] = micro
    ds_config = folder / "tiny.json"
    ds_config.write_text(json.dumps(raw))
    run = folder / "run"
    forked.train(ranks, folder / "log", data=shards, run=run, ds_config=ds_config, sets=[*SETS, *sets])
    return run


@pytest.mark.timeout(240)
def test_two_ranks_with_zero_3_and_expert_parallelism_equal_one(one_rank, shards, tmp_path):
    """Losses, gradient norms and every tensor of the weights, in ten steps of AdamW with balancing and a picture in between."""
    two = train(2, shards, tmp_path, zero=3, ep=2)
    for name in ("loss", "gradient_norm"):
        expected, got = launches.logged(one_rank, name), launches.logged(two, name)
        assert list(got) == list(range(1, STEPS + 1))
        assert list(got.values()) == pytest.approx(list(expected.values()), rel=1e-5)
    one, other = (load_file(run / "model.safetensors") for run in (one_rank, two))
    assert one.keys() == other.keys()
    for name, weights in one.items():
        away = other[name] - weights
        if name.endswith("read_image.key_value.bias"):
            # What is added to all keys alike cancels in the softmax: the gradient of this half is rounding and nothing else, and
            # Adam, which divides a gradient by its size, makes whole steps of it
            away, weights = away.chunk(2)[1], weights.chunk(2)[1]
        assert away.norm() <= 1e-5 * weights.norm(), name


@pytest.mark.timeout(240)
def test_accumulation_equals_a_whole_batch(one_rank, shards, tmp_path):
    """Micro-batches of one, with labels that some of them miss."""
    two = train(2, shards, tmp_path, zero=2, ep=2, micro=1)
    assert list(launches.losses(two).values()) == pytest.approx(list(launches.losses(one_rank).values()), rel=1e-5)


def test_what_ran_is_written_down(one_rank):
    resolved = json.loads((one_rank / "ds_config.json").read_text())
    assert resolved["bf16"]["enabled"] is False
    assert resolved["expert_parallel"]["autoep_size"] == 1
    assert "auto" not in (one_rank / "ds_config.json").read_text().replace("autoep", "")
    assert "auto" not in (one_rank / "config.yaml").read_text()


def test_tensorboard_tells_what_the_run_did(one_rank):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(one_rank)).Reload()
    scalars = set(events.Tags()["scalars"])
    wanted = {"loss", "learning_rate", "gradient_norm", "throughput/voxels_per_s", "expert_load/layer0", "expert_load/layer1"}
    wanted |= {f"expert_load/layer{layer}/{task}" for layer in (0, 1) for task in ("ball", "size", "radius")}
    wanted |= {f"{kind}/{task}" for kind in ("loss", "task_weight") for task in ("ball", "size", "radius")}
    assert wanted <= scalars
    assert len(events.Scalars("loss")) == 10
    assert len(events.Images("prediction")) == 2
