"""One rank of `bench scaling`: builds its engine, then does what each line of its input asks for and tells how long it took.

`python -m mri_ds.bench.scaling_rank JOB`, JOB a JSON object (see scaling.Team). Lines: "steps N" -> seconds of N weight updates;
"save N" -> seconds of one checkpoint and N updates; "product N" -> seconds of N matrix products of 1024^3; an empty line ends it.
Every answer is one line that begins with ANSWER and goes on with [seconds, seconds of CPU time].
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mri_ds.config import RunConfig, TaskConfig, load_config
from mri_ds.sample import Batch
from mri_ds.training.expert_load import ExpertLoad

ANSWER = "ANSWER "
SIDE = 1024  # of the matrices
SETTLE = 12  # forward passes after which experts are about as evenly loaded as a run's are
SETTLE_RATE = 0.5  # of the mean score, see ExpertLoad.balance
TASKS = {
    "tissue": TaskConfig(kind="segmentation", classes=["background", "grey", "white", "fluid"]),
    "lesion": TaskConfig(kind="classification", classes=["none", "some"]),
    "age": TaskConfig(kind="regression", unit="years", mean=50.0, std=15.0),
}


def main(job: dict[str, Any]) -> None:
    torch.set_num_threads(job["threads"])
    config = load_config(scale=job["scale"], overrides=job["sets"])
    config.tasks = TASKS
    batch = make_batch(job["micro_batch"], job["patch"])
    step, save = _plain(config, batch, job) if job["plain"] else _on_deepspeed(config, batch, job)
    for line in sys.stdin:
        if not line.strip():
            break
        verb, count = line.split()
        began, worked = time.perf_counter(), time.process_time()
        if verb == "product":
            _products(int(count), job["bf16"])
        else:
            if verb == "save":
                save()
            for _ in range(int(count)):
                step()
        took = [time.perf_counter() - began, time.process_time() - worked]
        print(f"\n{ANSWER}{json.dumps(took)}", flush=True)


def make_batch(count: int, patch: int) -> Batch:
    """Noise of the right shapes: time does not depend on what is seen."""
    shape = (patch, patch, patch)
    return {
        "image": torch.randn(count, 1, *shape),
        "spacing_mm": torch.ones(count, 3),
        "targets": {
            "tissue": torch.randint(0, 4, (count, *shape)),
            "lesion": torch.randint(0, 2, (count,)),
            "age": torch.full((count,), 50.0),
        },
        "mask": {name: torch.ones(count) for name in TASKS},
    }


Verb = tuple[Callable[[], None], Callable[[], None]]


def _plain(config: RunConfig, batch: Batch, job: dict[str, Any]) -> Verb:
    """What one writes without DeepSpeed: autocast, clipping, PyTorch's fused AdamW."""
    from mri_ds.training.engine import build_objective, parameter_groups

    objective = build_objective(config)
    load = ExpertLoad(objective, list(TASKS))
    t = config.training
    groups = parameter_groups(objective, lr=t.lr, weight_decay=t.weight_decay)
    optimizer = torch.optim.AdamW(groups, betas=t.betas, fused=True)

    def forward() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=job["bf16"]):
            return objective(batch)["loss"]  # type: ignore[no-any-return]

    def step() -> None:
        forward().backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        load.balance(rate=t.balance_rate)

    _settle(load, forward)
    return step, lambda: None


def _on_deepspeed(config: RunConfig, batch: Batch, job: dict[str, Any]) -> Verb:
    """As `mri-ds train` does it."""
    from mri_ds.training import distributed, ds_config
    from mri_ds.training.checkpoint import Checkpoints
    from mri_ds.training.engine import build_engine, build_objective
    from mri_ds.training.loop import train_step
    from mri_ds.training.window import Window

    distributed.start(600)
    raw = ds_config.read(Path(job["ds_config"]), job["ds"])
    resolved = ds_config.resolve(raw, config, world_size=distributed.world_size())
    engine = build_engine(build_objective(config), resolved)
    window, load = Window(), ExpertLoad(engine.module, list(TASKS))

    def step() -> None:
        train_step(engine, iter([batch] * engine.gradient_accumulation_steps()), window)
        load.balance(rate=config.training.balance_rate)

    kept: list[Checkpoints] = []

    def save() -> None:
        kept[:] = kept or [Checkpoints(engine, Path(job["folder"]), config.training)]
        kept[0].save(engine.global_steps, batch=batch, data={}, scalars={})

    _settle(load, lambda: engine(batch))
    return step, save


def _settle(load: ExpertLoad, forward: Callable[[], object]) -> None:
    """New routers send most rows to a few experts, and so to one of the ranks, which a run's first updates put right."""
    for _ in range(SETTLE):
        forward()
        load.balance(rate=SETTLE_RATE)


def _products(count: int, bf16: bool) -> None:
    a = torch.randn(SIDE, SIDE, dtype=torch.bfloat16 if bf16 else torch.float32)
    for _ in range(count):
        a @ a


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
