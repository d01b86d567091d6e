import json
from pathlib import Path

import pytest

from mri_ds.config import SCALES, load_config
from mri_ds.errors import InputError
from mri_ds.training import ds_config

CONFIGS = Path(__file__).parents[2] / "ds_configs"


def written(tmp_path, **changes):
    raw = json.loads((CONFIGS / "tiny.json").read_text())
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(raw | changes))
    return path


def resolve(raw, world_size=2, **overrides):
    config = load_config(scale="tiny", overrides=[f"{k}={v}" for k, v in overrides.items()])
    return ds_config.resolve(raw, config, world_size=world_size)


def autos(node):
    if isinstance(node, dict):
        return [x for value in node.values() for x in autos(value)]
    return [node] if node == "auto" else []


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_scales_json_resolves_to_what_deepspeed_accepts(scale, world_size):
    from deepspeed.runtime.config import DeepSpeedConfig

    raw = ds_config.read(CONFIGS / f"{scale}.json")
    out = ds_config.resolve(raw, load_config(scale=scale), world_size=world_size)
    assert autos(out) == []
    assert out["train_batch_size"] == world_size * out["train_micro_batch_size_per_gpu"] * out["gradient_accumulation_steps"]
    assert out["zero_optimization"]["stage"] == 3
    single = ds_config.resolve(raw, load_config(scale=scale), world_size=1)  # DeepSpeed checks the batch against the live world
    assert DeepSpeedConfig(ds_config.for_deepspeed(single)).gradient_clipping == out["gradient_clipping"]


def test_science_comes_from_the_yaml():
    out = resolve(
        ds_config.read(CONFIGS / "tiny.json"), **{"training.lr": 0.5, "training.steps": 40, "training.warmup_fraction": 0.25}
    )
    assert out["optimizer"]["params"]["lr"] == 0.5
    assert out["scheduler"]["params"]["total_num_steps"] == 40
    assert out["scheduler"]["params"]["warmup_num_steps"] == 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"zero_optimisation": {}}, "unknown key 'zero_optimisation'. Fix: did you mean 'zero_optimization'?"),
        ({"zero_optimization": {"stge": 3}}, "unknown key 'zero_optimization.stge'. Fix: did you mean 'stage'?"),
        ({"bf16": {"enable": True}}, "unknown key 'bf16.enable'. Fix: did you mean 'enabled'?"),
        ({"expert_parallel": {"autoep_sise": 2}}, "did you mean 'autoep_size'?"),
        ({"optimizer": {"type": "AdamW"}}, "set training.lr"),
        ({"gradient_accumulation_steps": 2}, "training.global_batch"),
        ({"activation_checkpointing": {"level": "blocks"}}, "did you mean 'block'?"),
        ({"bf16": True}, "is not an object"),
    ],
)
def test_a_wrong_key_is_named_with_its_fix(tmp_path, changes, message):
    with pytest.raises(InputError, match=r"tiny\.json") as err:
        ds_config.read(written(tmp_path, **changes))
    assert message in str(err.value)


@pytest.mark.parametrize("text", ["{", "[1, 2]", ""])
def test_broken_json_is_named(tmp_path, text):
    path = tmp_path / "tiny.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"tiny\.json"):
        ds_config.read(path)
    with pytest.raises(InputError, match="No such file"):
        ds_config.read(tmp_path / "absent.json")


@pytest.mark.parametrize(("size", "world_size"), [(3, 3), (2, 3), (8, 8), (0, 2), ("many", 2)])
def test_experts_that_cannot_be_divided_are_refused(tmp_path, size, world_size):
    raw = ds_config.read(written(tmp_path, expert_parallel={"enabled": True, "autoep_size": size}))
    with pytest.raises(InputError, match=f"must divide both the 4 experts and the {world_size} ranks"):
        resolve(raw, world_size, **{"training.global_batch": world_size})


def test_auto_expert_parallel_takes_the_largest_size_that_fits():
    raw = ds_config.read(CONFIGS / "tiny.json")
    sizes = {w: resolve(raw, w, **{"training.global_batch": w})["expert_parallel"]["autoep_size"] for w in (1, 2, 3, 4, 8)}
    assert sizes == {1: 1, 2: 2, 3: 1, 4: 4, 8: 4}


def test_a_global_batch_that_cannot_be_divided_is_refused():
    with pytest.raises(InputError, match="global_batch = 4 cannot be divided over 3 ranks"):
        resolve(ds_config.read(CONFIGS / "tiny.json"), 3)


def test_accumulation_follows_from_the_global_batch(tmp_path):
    raw = ds_config.read(written(tmp_path, train_micro_batch_size_per_gpu=1))
    assert resolve(raw, 2, **{"training.global_batch": 8})["gradient_accumulation_steps"] == 4
