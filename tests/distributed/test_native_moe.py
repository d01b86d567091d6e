"""DeepSpeed's own MoE layer as the back end, on two ranks: with room for all rows it is AutoEP, and a single device."""

from pathlib import Path

import engines
import pytest
import torch
from safetensors.torch import load_file

from mri_ds.config import TaskConfig, load_config
from mri_ds.mri_network import BaseMRINet

NATIVE = "expert_parallel.backend=native"
PLAIN = ["zero_optimization.stage=0", "expert_parallel.enabled=false", "activation_checkpointing.level=none"]
RESIDUAL = ["model.residual_experts=true"]


def zero(stage, *more):
    return [f"zero_optimization.stage={stage}", *more]


def room(factor):
    return f"expert_parallel.capacity_factor={factor}"


CASES = {
    "plain": {"ds": PLAIN},
    "autoep": {"ds": zero(2)},
    "native zero0": {"ds": zero(0, NATIVE)},
    "native zero1": {"ds": zero(1, NATIVE)},
    "native zero2": {"ds": zero(2, NATIVE)},
    "native whole": {"ds": zero(2, NATIVE, "expert_parallel.autoep_size=1")},
    "native room": {"ds": zero(2, NATIVE, room(2))},  # 2 of 4 experts per token: twice the fair share is room for all
    "native accumulated": {"ds": zero(2, NATIVE, "train_micro_batch_size_per_gpu=1")},
    "native resumed": {"ds": zero(2, NATIVE), "resume": True},
    "native narrow": {"ds": zero(2, NATIVE, room(0.5))},
    "native bf16": {"ds": zero(2, NATIVE, "bf16.enabled=true")},
    "three plain": {"ds": PLAIN, "sets": ["model.top_k=3"]},
    "three native": {"ds": zero(1, NATIVE), "sets": ["model.top_k=3"]},
    "residual plain": {"ds": PLAIN, "sets": RESIDUAL},
    "residual native": {"ds": zero(2, NATIVE), "sets": RESIDUAL},
    "residual autoep": {"ds": zero(3), "sets": RESIDUAL},
}
SGD = {"sgd plain": PLAIN, "sgd autoep": zero(2), **{f"sgd native zero{stage}": zero(stage, NATIVE) for stage in (0, 1, 2)}}
CASES |= {name: {"ds": ds, "sgd": 0.02} for name, ds in SGD.items()}
EQUAL = {  # case -> what it must equal
    **{name: "plain" for name in CASES if name.startswith("native") and name not in ("native narrow", "native bf16")},
    "autoep": "plain",
    "three native": "three plain",
    "residual native": "residual plain",
    "residual autoep": "residual plain",
    **dict.fromkeys(list(SGD)[1:], "sgd plain"),
}
STEPS = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("native")


@pytest.fixture(scope="module")
def told(folder):
    cases = {name: {"export": True} | case for name, case in CASES.items()}
    return engines.run(cases, ranks=2, folder=folder, steps=STEPS, timeout_s=1000)


def weights(folder, name):
    return load_file(folder / name.replace(" ", "-") / "model.safetensors")


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", EQUAL)
def test_ten_losses_are_those_of_whole_experts(told, name):
    assert len(told[name]["losses"]) == STEPS
    assert told[name]["losses"] == pytest.approx(told[EQUAL[name]]["losses"], rel=1e-5)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", list(SGD)[1:])
def test_ten_steps_of_sgd_move_every_weight_alike(told, folder, name):
    """A gradient that is too large by the expert-parallel size, which Adam would hide, would move the experts twice as far."""
    got, expected = weights(folder, name), weights(folder, "sgd plain")
    config = load_config(scale="tiny", overrides=engines.SETS)
    torch.manual_seed(0)
    first = BaseMRINet(config.model, {task: TaskConfig(**facts) for task, facts in engines.TASKS.items()}).state_dict()
    for key in expected.keys() - {key for key in expected if key.endswith("correction_bias")}:
        moved = (expected[key] - first[key]).norm()
        assert (got[key] - expected[key]).norm() <= 2e-3 * moved + 1e-6, key


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", [name for name in CASES if "native" in name])
def test_the_export_is_basemrinets(told, folder, name):
    """Loaded by a single device without DeepSpeed; its logits are those of the run that it equals."""
    config = load_config(scale="tiny", overrides=[*engines.SETS, *CASES[name].get("sets", [])])
    tasks = {task: TaskConfig(**facts) for task, facts in engines.TASKS.items()}
    image = engines.batch_of(0, 2, slice(0, 2))["image"]
    logits = {}
    for case in (name, EQUAL.get(name, "plain")):
        net = BaseMRINet(config.model, tasks).eval()
        net.load_state_dict(weights(folder, case))
        with torch.no_grad():
            logits[case] = net(image)
    if name in EQUAL:
        for task, value in logits[name].items():
            torch.testing.assert_close(value, logits[EQUAL[name]][task], rtol=1e-3, atol=2e-3)


@pytest.mark.timeout(1200)
def test_narrow_room_leaves_rows_out_and_still_learns(told):
    got, whole = told["native narrow"]["losses"], told["plain"]["losses"]
    assert got[0] != pytest.approx(whole[0], rel=1e-6)
    assert got == pytest.approx(whole, rel=0.1)


@pytest.mark.timeout(1200)
def test_bf16_is_near_float32(told):
    assert told["native bf16"]["dtype"] == "torch.bfloat16"
    assert told["native bf16"]["losses"] == pytest.approx(told["plain"]["losses"], rel=2e-2)


@pytest.mark.timeout(1200)
def test_what_ran_is_told(told):
    assert told["native room"]["resolved"]["expert_parallel"] == {
        "enabled": True,
        "backend": "native",
        "autoep_size": 2,
        "capacity_factor": 2,
        "eval_capacity_factor": 2,
        "min_capacity": 4,
    }
