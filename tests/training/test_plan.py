"""The plan's figures by hand, by another way of counting, and where they must not move."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mri_ds.errors import InputError
from mri_ds.mri_network import BaseMRINet, describe
from mri_ds.training import ds_config
from mri_ds.training.devices import TABLE
from mri_ds.training.engine import build_objective
from mri_ds.training.plan.communication import communication
from mri_ds.training.plan.cost import cost, forward_flops
from mri_ds.training.plan.layout import Layout
from mri_ds.training.plan.memory import memory
from mri_ds.training.plan.parameters import Parameters, count
from mri_ds.training.plan.report import _layout
from mri_ds.training.plan.science import science_of
from mri_ds.training.plan.suggestion import best_layout, best_micro_batch, fits, outcome
from mri_ds.training.plan.time import step_time
from mri_ds.training.plan.trace import Trace, at_micro_batch, make_batch, trace

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["data.patch=[16, 16, 16]", "model.num_layers=1"]
NOTHING = Trace(0, 0, 0, 0, ())


@pytest.mark.parametrize("scale", ["tiny", "small", "base", "large", "xl"])
def test_parameters_are_those_of_the_network(scale):
    found, told = count(science_of(scale)), describe(scale)
    assert sum(found.experts) == told["parameters_experts"]
    assert found.total == told["parameters_total"] + 3  # and the weights of three tasks


def test_floating_point_operations_are_those_that_pytorch_counts_on_real_numbers():
    """PyTorch's counter on a real pass of the same network, whose experts are as unevenly loaded as they are."""
    config = science_of("tiny", overrides=SMALL)
    objective = build_objective(config)
    batch = make_batch(config, 2)
    for value in (batch["image"], *batch["targets"].values(), *batch["mask"].values()):
        value.zero_()
    batch["spacing_mm"].fill_(1)
    with FlopCounterMode(display=False) as counter:
        objective(batch)["loss"].backward()
    told = trace(config, micro_batch=2, precision="fp32", recompute="none").flops
    assert told == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_arithmetic_of_a_volume_is_what_pytorch_counts_on_real_numbers():
    """All but attention's, which its counter does not know on a CPU: 2 layers of 4^3 tokens, twice 2 N^2 D, by hand."""
    config = science_of("tiny")
    net = BaseMRINet(config.model, config.tasks).eval().requires_grad_(False)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.randn(1, 1, 32, 32, 32))
    assert forward_flops("tiny", edge=32) == pytest.approx(counter.get_total_flops() + 2 * 2 * 2 * 64**2 * 32, rel=1e-3)


def test_training_memory_is_16_bytes_a_parameter_and_what_a_volume_needs():
    """In bfloat16: weights and gradients of 2 bytes, a master copy of 4, Adam's 8."""
    config = science_of("tiny", overrides=["data.patch=[32, 32, 32]"])
    needs = trace(config, micro_batch=1, precision="bf16", recompute="block").peak_bytes
    told = cost("tiny", edge=32)
    assert told["training_bytes"] == 16 * count(config).total + needs and told["volume"] == [32, 32, 32]


def test_activations_are_what_is_alive_on_real_numbers():
    """The same watch over a real pass in float32: the same storages live and die, but for what evenly loaded experts differ."""
    from mri_ds.training.plan import trace as module

    config = science_of("tiny", overrides=SMALL)
    told = trace(config, micro_batch=2, precision="fp32", recompute="none")
    objective = build_objective(config)
    for p in objective.parameters():
        p.register_post_accumulate_grad_hook(module._forget_gradient)
    batch = make_batch(config, 2)
    for value in (batch["image"], *batch["targets"].values(), *batch["mask"].values()):
        value.zero_()
    batch["spacing_mm"].fill_(1)
    watch = module._Watch(ignored=[*objective.parameters(), *objective.buffers()])
    with watch:
        objective(batch)["loss"].backward()
    assert told.peak_bytes == pytest.approx(watch.peak, rel=0.02)


def test_a_trace_leaves_nothing_fake_behind():
    """Layers keep tables for the next call; a real pass after a trace must not find fake ones."""
    config = science_of("tiny", overrides=SMALL)
    trace(config, micro_batch=1, precision="fp32", recompute="block")
    net = build_objective(config).net
    out = net(torch.zeros(1, 1, 16, 16, 16))
    assert all(type(x) is torch.Tensor for x in out.values())


def test_recomputation_keeps_less_and_computes_more():
    config = science_of("tiny", overrides=["data.patch=[32, 32, 32]", "model.num_layers=3"])
    found = [trace(config, micro_batch=1, precision="bf16", recompute=level) for level in ("none", "attention", "block", "full")]
    for kept, again in pairwise(found):
        assert again.peak_bytes <= kept.peak_bytes and again.kept_bytes < kept.kept_bytes and again.flops > kept.flops
    assert found[2].peak_bytes < found[0].peak_bytes


def test_any_micro_batch_lies_on_the_line():
    config = science_of("tiny", overrides=SMALL)
    line = at_micro_batch(6, config, precision="fp32", recompute="none")
    own = trace(config, micro_batch=6, precision="fp32", recompute="none")
    assert 0.99 * own.peak_bytes <= line.peak_bytes <= 1.1 * own.peak_bytes
    assert line.flops == pytest.approx(own.flops, rel=0.01)


PARAMETERS = Parameters(dense=(1000, 200), experts=(800, 800, 800))  # one layer


@pytest.mark.parametrize(
    ("zero", "weights", "gradients", "optimizer"),
    # on 4 ranks with EP 2: 1,200 dense and 1,200 experts each; experts have 2 replicas. bf16: 2 bytes, 12 of Adam and master
    [
        (0, 2 * 2400, 2 * 2400, 12 * 2400),
        (1, 2 * 2400, 2 * 2400, 12 * (300 + 600)),
        (2, 2 * 2400, 2 * (300 + 600), 12 * (300 + 600)),
        (3, 2 * (300 + 600) + 2 * (200 + 3 * 400), 2 * (300 + 600), 12 * (300 + 600)),  # tensors under 500 are whole as well
    ],
)
def test_states_by_hand(zero, weights, gradients, optimizer):
    layout = Layout(nodes=1, slots=4, zero=zero, ep=2, persistence=500, reduce_bucket=700)
    held = memory(PARAMETERS, layout, NOTHING)
    assert (held.weights, held.gradients, held.optimizer) == (weights, gradients, optimizer)
    assert held.gathered == (2 * 1000 if zero == 3 else 0)
    assert held.bucket == (2 * 700 if zero else 0)
    kept = held.weights + held.gradients + held.optimizer + held.bucket
    assert held.peak == kept + max(held.gathered + held.sending, held.update)


def test_offloaded_states_are_the_hosts():
    layout = Layout(nodes=1, slots=2, zero=3, offload_optimizer=True)
    on_device, on_host = (
        memory(PARAMETERS, layout, NOTHING),
        memory(PARAMETERS, replace(layout, offload_optimizer=False), NOTHING),
    )
    assert on_device.optimizer == on_device.update == 0 and on_device.peak < on_host.peak
    assert on_device.host == on_host.gradients + on_host.optimizer + on_host.update


def by_name(traffic):
    return {(one.what, one.collective): one for one in traffic}


def test_communication_by_hand():
    shape = {"tokens": 10, "width": 4, "layers": 1, "top_k": 2}
    layout = Layout(nodes=2, slots=2, zero=3, ep=2, persistence=500, accumulation=3, recompute="block")
    found = by_name(communication(PARAMETERS, layout, **shape))
    reduce = found["dense gradients", "reduce_scatter"]
    assert (reduce.group, reduce.bytes_message, reduce.bytes_sent) == (4, 3 * 2 * 1200, 3 * 2 * 1200 * 3 // 4)
    assert found["experts gradients", "reduce_scatter"].bytes_sent == 3 * 2 * 1200 // 2
    assert found["dense small weights", "all_gather"].bytes_message == 2 * 200  # once a step
    assert found["dense large weights", "all_gather"].bytes_message == 3 * 2 * 1000  # once a micro-batch: all of it stays near
    tokens = found["tokens", "all_to_all"]
    # there and back, in the forward pass, again when recomputed, and in the backward pass, for each of 3 micro-batches
    assert (
        tokens.messages == 18 and tokens.bytes_message == 18 * 10 * 2 * 4 * 2 and tokens.bytes_sent == tokens.bytes_message // 2
    )
    assert not tokens.crosses_nodes and reduce.crosses_nodes
    kept = by_name(communication(PARAMETERS, replace(layout, recompute="attention"), **shape))
    assert kept["tokens", "all_to_all"].messages == 12  # experts do not run again
    all_reduce = by_name(communication(PARAMETERS, replace(layout, zero=0, ep=1), **shape))["dense gradients", "all_reduce"]
    assert all_reduce.bytes_sent == 2 * 2 * 1200 * 3 // 4  # once a step, there and back


def test_one_rank_says_nothing():
    assert communication(PARAMETERS, Layout(nodes=1, slots=1, zero=3), tokens=10, width=4, layers=1, top_k=2) == []


def test_a_step_takes_what_its_roofline_says():
    """Two operators on a device of 1 FLOP/s and 1 byte/s at full share: 10 s of arithmetic, 20 s of bytes, no launches."""
    slow = replace(TABLE["h200"], bf16=1.0, bandwidth=1.0, share=1.0, launch_s=0.0)
    work = Trace(0, 0, 10, 2, ((10, 4), (0, 20)))
    layout = Layout(nodes=1, slots=1, accumulation=3)
    time = step_time(work, memory(Parameters((), ()), layout, work), [], layout, slow)
    assert time.compute == 3 * 30 and time.communication == 0 and time.efficiency == 1
    late = step_time(work, memory(Parameters((), ()), layout, work), [], layout, replace(slow, launch_s=15.0))
    assert late.compute == 3 * 35 and late.launches == 3 * 5


def test_what_is_suggested_fits_and_nothing_that_fits_is_faster():
    config = science_of("tiny", overrides=SMALL)
    tight = replace(TABLE["h200"], memory=60e6, runtime=1e6)
    layout = Layout(nodes=2, slots=2, zero=3, ep=2, reduce_bucket=1000)
    best = best_layout(config, layout, tight, global_batch=32)
    assert best is not None and fits(best, tight)
    assert best.layout.micro_batch * best.layout.accumulation * 4 == 32
    for zero in (0, 1, 2, 3):
        for ep in (1, 2, 4):
            for level in ("none", "block"):
                other = replace(layout, zero=zero, ep=ep, recompute=level)
                one = best_micro_batch(config, other, tight, global_batch=32)
                assert not fits(one, tight) or one.samples_per_s <= best.samples_per_s / 0.98
    larger = replace(best.layout, micro_batch=2 * best.layout.micro_batch)
    assert best.layout.accumulation == 1 or not fits(outcome(config, larger, tight), tight)
    assert best_layout(config, layout, replace(tight, memory=1e6), global_batch=32) is None


def test_the_command_plans_thousands_of_ranks():
    command = [sys.executable, "-m", "mri_ds", "plan", "--scale", "xl", "--nodes", "512", "--slots", "8", "--device", "h200"]
    command += ["--no-search", "--set", "data.patch=[32, 32, 32]", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    plan = json.loads(done.stdout)
    assert plan["layout"]["ranks"] == 4096 and plan["parameters"]["total"] > 4e8 and plan["memory"]["fits"]
    assert {"weights", "gradients", "optimizer", "activations", "experts", "peak"} <= set(plan["memory"])
    assert plan["activation_bytes"]["block"] < plan["activation_bytes"]["none"]
    assert plan["time"]["step"] > 0 and 0 < plan["time"]["efficiency"] < 1 and plan["communication"]


def test_the_command_refuses_an_unknown_device():
    command = [sys.executable, "-m", "mri_ds", "plan", "--device", "h300"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "did you mean" in done.stderr


@pytest.mark.parametrize(
    ("device", "sets", "expected"),
    [
        ("h200", [], "bf16"),
        ("v100", [], "fp16"),  # has no bf16
        ("h200", ["bf16.enabled=false"], "fp32"),
        ("h200", ["bf16.enabled=false", "fp16.enabled=true"], "fp16"),  # whether or not this machine has it
    ],
)
def test_precision_is_decided_by_the_device_that_is_planned_for(device, sets, expected):
    raw = ds_config.read(ROOT / "ds_configs/small.json", sets)
    config = science_of("small")
    found = _layout(raw, config, TABLE[device], nodes=1, slots=1, where=ROOT / "small.json")
    assert found.precision == expected


def test_a_precision_that_the_device_has_not_is_refused():
    raw = ds_config.read(ROOT / "ds_configs/small.json", ["bf16.enabled=true"])
    with pytest.raises(InputError, match="v100 has no bf16"):
        _layout(raw, science_of("small"), TABLE["v100"], nodes=1, slots=1, where=ROOT / "small.json")
