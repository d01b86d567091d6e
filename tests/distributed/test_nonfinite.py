"""A step that is not finite moves nothing on any rank; what follows equals a run that never saw it; a run that o

nly has such stops.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

import forked
import launches
import nonfinite_ranks
import pytest
import torch
from nonfinite_ranks import BAD_GRADIENT, BAD_LOSS, CASES, STEPS, batch_of, config, global_batch

from mri_ds.training.engine import build_objective, parameter_groups


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """{case: what each of two ranks saw}."""
    out = tmp_path_factory.mktemp("nonfinite")
    codes = forked.start(2, out / "log", nonfinite_ranks.main, str(out), timeout_s=400)
    assert codes == [0, 0], (out / "log").read_text()[-4000:]
    told = [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(2)]
    return {case: [one["-".join(map(str, case))] for one in told] for case in CASES} | {"back": told[0]["back"]}


def learning_rate(step: int) -> float:
    """Of DeepSpeed's WarmupCosineLR in step 1, 2, ...: its first step is taken at zero."""
    training = config().training
    warmup, done = max(2, round(STEPS * training.warmup_fraction)), step - 2
    if done < 0:
        return 0.0
    if done < warmup:
        return training.lr * (0.01 + 0.99 * done / warmup)
    progress = (done - warmup + 1) / (STEPS - warmup)
    return training.lr * (training.min_lr_ratio + (1 - training.min_lr_ratio) * (1 + math.cos(math.pi * progress)) / 2)


@pytest.fixture(scope="module")
def plain_losses():
    """{step: loss} of one process and plain PyTorch that leaves the bad steps out."""
    run = config()
    torch.manual_seed(run.training.seed)
    objective = build_objective(run)
    groups = parameter_groups(objective, lr=run.training.lr, weight_decay=run.training.weight_decay)
    factors = [group["lr"] / run.training.lr for group in groups]
    optimizer = torch.optim.AdamW(groups, betas=run.training.betas)
    losses = {}
    for step in range(1, STEPS + 1):
        if step == BAD_LOSS:
            continue
        loss = objective(batch_of(*global_batch(step)))["loss"]
        losses[step] = loss.item()
        if step == BAD_GRADIENT:
            continue
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        for group, factor in zip(optimizer.param_groups, factors):
            group["lr"] = factor * learning_rate(step)
        optimizer.step()
    return losses


@pytest.mark.timeout(480)
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_the_step_moves_nothing_on_any_rank(ranks, case):
    for told in ranks[case]:
        steps = told["steps"]
        assert [s["skipped"] for s in steps] == [step in (BAD_LOSS, BAD_GRADIENT) for step in range(1, STEPS + 1)]
        assert [s["same"] for s in steps[1:]] == [s["skipped"] for s in steps[1:]]  # weights, moments, Adam's count of steps
        assert told["skipped_steps"] == 2
        assert [s["lr"] for s in steps] == pytest.approx([learning_rate(step) for step in range(1, STEPS + 1)])
        assert steps[BAD_LOSS - 1]["loss"] == "nan" and math.isfinite(float(steps[BAD_GRADIENT - 1]["loss"]))
        assert steps[BAD_LOSS - 1]["reason"] == "the loss is not finite (rank 1)"
        assert steps[BAD_LOSS - 1]["subjects"] == ["sub-0", "sub-1"]
        is_scaled = case[2] == "fp16"  # there it is the loss scaler's affair: it lowers the scale
        reason = "the gradient overflowed fp16" if is_scaled else "the gradient is not finite, though the loss is"
        assert reason in steps[BAD_GRADIENT - 1]["reason"]
        assert [s["in_row"] for s in steps] == [0, 0, 1, 0, 0 if is_scaled else 1, 0]


@pytest.mark.timeout(480)
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_all_other_steps_are_as_if_it_had_never_been(ranks, plain_losses, case):
    tolerance = 1e-5 if case[2] == "fp32" else 2e-2
    for told in ranks[case]:
        got = {step: float(told["steps"][step - 1]["loss"]) for step in plain_losses}
        assert got == pytest.approx(plain_losses, rel=tolerance, abs=tolerance)


@pytest.mark.timeout(480)
def test_going_back_is_as_if_the_steps_between_had_never_been(ranks):
    """Weights, moments and Adam's count are those of step 2; learning rate and data go on with step 5."""
    with_jump, without = ranks["back"]
    assert [step for step, _, _ in with_jump] == [1, 2, 3, 4, 5, 6] and [step for step, _, _ in without] == [1, 2, 5, 6]
    kept = [row for row in with_jump if row[0] not in (3, 4)]
    assert [lr for _, lr, _ in kept] == pytest.approx([learning_rate(step) for step in (1, 2, 5, 6)])
    assert [loss for _, _, loss in kept] == [loss for _, _, loss in without]


@pytest.fixture(scope="module")
def diverged(shards, tmp_path_factory):
    """A run on two ranks whose learning rate throws the weights to infinity, and what it said last."""
    folder = tmp_path_factory.mktemp("diverged")
    sets = ["training.steps=20", "training.max_nonfinite=2", "training.lr=1e30", "training.global_batch=4"]
    ds_config = launches.ROOT / "ds_configs/tiny.json"
    command = launches.train_command(2, data=shards, run=folder / "run", ds_config=ds_config, sets=sets)
    with launches.started(command, folder / "log") as (process, _):
        code = process.wait(timeout=240)
    assert code != 0
    return folder / "run", (folder / "log").read_text()


@pytest.mark.timeout(300)
def test_a_run_that_only_gets_worse_stops_and_says_where(diverged):
    run, text = diverged
    (dump,) = (run / "nonfinite").iterdir()
    told = json.loads((dump / "dump.json").read_text())
    assert f"step {told['step']}: the loss is not finite (ranks 0, 1), 2 in a row. Look with `mri-ds replay {dump}`" in text
    assert f"subjects {', '.join(told['subject_ids'])}" in text
    assert len(told["subject_ids"]) == 4 and all(name.startswith("sub-") for name in told["subject_ids"])
    assert not (run / "model.safetensors").exists()


@pytest.mark.timeout(300)
def test_replay_reproduces_it_on_one_process(diverged):
    run, _ = diverged
    (dump,) = (run / "nonfinite").iterdir()
    command = [str(Path(sys.executable).parent / "mri-ds"), "replay", str(dump), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=launches.environment(), cwd=launches.ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["reproduced"] and found["weights_not_finite"] == []
    assert [m["rank"] for m in found["micro_batches"]] == [0, 1]
    for micro in found["micro_batches"]:
        assert not math.isfinite(float(micro["loss"])) and micro["input_not_finite"] == []
        assert micro["first_forward"].startswith("net.") and set(micro["subject_losses"]) == set(micro["subject_ids"])
