"""What `test_nonfinite` runs on two ranks: engine after engine, six steps each, of which the third and the fifth must move
nothing.

In step 3 rank 1 alone is shown an image with an infinite voxel; in step 5 rank 0 alone gets a gradient of NaN from a finite
loss, as a square root at zero gives it. Each rank writes what it saw to OUT/rankR.json.
"""

import json
from pathlib import Path

import engines
import torch

from mri_ds.config import load_config
from mri_ds.training import distributed
from mri_ds.training.ds_config import limits

CASES = [  # ZeRO stage, expert-parallel size, precision
    (0, 1, "fp32"),
    (1, 2, "fp32"),
    (2, 2, "fp32"),
    (3, 1, "fp32"),
    (3, 2, "fp32"),
    (0, 1, "bf16"),
    (1, 2, "bf16"),
    (2, 2, "bf16"),
    (3, 2, "bf16"),
    (1, 1, "bf16 summed in fp32"),  # DeepSpeed has an optimiser of its own for that
    (0, 1, "fp16"),
    (2, 2, "fp16"),
    (3, 2, "fp16"),
]
STEPS, BAD_LOSS, BAD_GRADIENT = 6, 3, 5
MICRO, RANKS = 2, 2
OVERRIDES = [
    "model.embed_dim=16",
    "model.num_layers=1",
    "model.expert_hidden=16",
    "model.drop_path=0",
    "model.in_channels=1",
    "data.patch=[16,16,16]",
    f"training.steps={STEPS}",
    f"training.global_batch={MICRO * RANKS}",
    "training.warmup_fraction=0.3",
    "training.lr=0.003",
    "tasks={ball: {kind: segmentation, classes: [background, ball]}, radius: {kind: regression, mean: 5, std: 2}}",
]


def config():
    return load_config(scale="tiny", overrides=OVERRIDES)


def global_batch(step):
    """(image, ball, radius) of the whole step, the same wherever it is made."""
    generator = torch.Generator().manual_seed(step)
    image = torch.randn(MICRO * RANKS, 1, 16, 16, 16, generator=generator)
    radius = 4 + 2 * torch.rand(MICRO * RANKS, generator=generator)
    return image, (image[:, 0] > 0.5).long(), radius


def batch_of(image, ball, radius):
    ones = torch.ones(len(image))
    ids = [f"sub-{i}" for i in range(len(image))]
    targets, mask = {"ball": ball, "radius": radius}, {"ball": ones, "radius": ones}
    return {"image": image, "spacing_mm": torch.ones(len(image), 3), "targets": targets, "mask": mask, "subject_id": ids}


def with_bad_gradient(objective, is_now):
    """While is_now[0], the loss is what it was and its gradient NaN."""

    def hook(module, args, out):
        return out | {"loss": out["loss"] + 0 * (out["loss"] - out["loss"]).sqrt()} if is_now[0] else out

    objective.loss.register_forward_hook(hook)


def state_of(engine):
    """Everything a step could move on this rank: master weights, moments, step counts."""
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    out = [p.detach().clone() for group in inner.param_groups for p in group["params"]]
    return out + [torch.as_tensor(x).clone() for held in inner.state.values() for _, x in sorted(held.items())]


def train(zero, ep, precision):
    from deepspeed.accelerator import get_accelerator

    from mri_ds.training import ds_config
    from mri_ds.training.engine import build_engine, build_objective
    from mri_ds.training.loop import train_step
    from mri_ds.training.nonfinite import StepGuard

    run, rank = config(), distributed.rank()
    raw = {"zero_optimization": {"stage": zero}, "expert_parallel": {"enabled": True, "autoep_size": ep}}
    raw |= {"train_micro_batch_size_per_gpu": MICRO, "gradient_clipping": 1.0}
    raw["bf16"] = {"enabled": precision.startswith("bf16")}
    if "summed" in precision:
        raw["data_types"] = {"grad_accum_dtype": "fp32"}
    if precision == "fp16":
        # DeepSpeed refuses fp16 on a CPU without instructions for it; torch computes it all the same, only slowly
        type(get_accelerator()).is_fp16_supported = lambda self: True
        limits.supports_fp16 = lambda: True
        raw["fp16"] = {"enabled": True, "initial_scale_power": 8, "hysteresis": 1}
    torch.manual_seed(run.training.seed)
    objective, is_now = build_objective(run), [False]
    with_bad_gradient(objective, is_now)
    engine = build_engine(objective, ds_config.resolve(raw, run, world_size=RANKS))
    guard = StepGuard(engine, max_in_row=3, dump=lambda *args: Path("nowhere"))
    told = []
    for step in range(1, STEPS + 1):
        image, ball, radius = (part[MICRO * rank : MICRO * (rank + 1)].clone() for part in global_batch(step))
        if step == BAD_LOSS and rank == 1:
            image[1, 0, 3, 4, 5] = torch.inf
        is_now[0] = step == BAD_GRADIENT and rank == 0
        before = state_of(engine)
        lr = engine.get_lr()[0]
        train_step(engine, iter([batch_of(image, ball, radius)]), engines.window(), see=guard.see)
        result = guard.end_step(step)
        after = state_of(engine)
        is_same = len(before) == len(after) and all(map(torch.equal, before, after))
        told.append({"lr": lr, "loss": str(result.loss), "skipped": result.is_skipped, "same": is_same, "reason": result.reason})
        told[-1] |= {"subjects": result.subject_ids, "in_row": guard.in_row}
    return {"steps": told, "skipped_steps": engine.skipped_steps}


def go_back(folder, *, sees_the_jump):
    """Losses of STEPS steps; with a jump after the fourth, back to the weights of the second, and on with the fifth batch."""
    from mri_ds.training import ds_config
    from mri_ds.training.checkpoint import Checkpoints
    from mri_ds.training.engine import build_engine, build_objective
    from mri_ds.training.loop import train_step
    from mri_ds.training.spikes import SpikeWatch

    run, rank = config(), distributed.rank()
    raw = {"zero_optimization": {"stage": 3}, "expert_parallel": {"enabled": True, "autoep_size": 2}}
    torch.manual_seed(run.training.seed)
    engine = build_engine(build_objective(run), ds_config.resolve(raw, run, world_size=RANKS))
    spikes, checkpoints, told = SpikeWatch(8.0), Checkpoints(engine, folder, run.training), []
    for step in range(1, STEPS + 1):
        if not sees_the_jump and step in (3, 4):  # as if these had never been
            engine.lr_scheduler.step()
            continue
        lr = engine.get_lr()[0]
        image, ball, radius = (part[MICRO * rank : MICRO * (rank + 1)] for part in global_batch(step))
        losses, batch = train_step(engine, iter([batch_of(image, ball, radius)]), engines.window())
        told.append([step, lr, distributed.average({"loss": losses["loss"]})["loss"]])
        if step == 2 and sees_the_jump:
            checkpoints.save(step, batch=batch, data={}, wait=True)
        if step == 4:
            assert spikes.roll_back(engine, checkpoints.resume, step) == 2
    return told


def main(out):
    distributed.start(120)
    told = {"-".join(map(str, case)): train(*case) for case in CASES}
    told["back"] = [go_back(Path(out) / "back", sees_the_jump=is_seen) for is_seen in (True, False)]
    (Path(out) / f"rank{distributed.rank()}.json").write_text(json.dumps(told))
    distributed.stop()
