"""One rank of a parity run: `python -m mri_ds.training.parity.rank FOLDER`, with RANK and the like in the environment.

Builds engine after engine in the same process group, each as `mri-ds train` builds its own. Rank 0 compares with the plain
runs that lie in FOLDER and adds a line to FOLDER/rows.jsonl after each case.
"""

import gc
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mri_ds.sample import Batch
from mri_ds.training import distributed, ds_config
from mri_ds.training.distributed import to_device
from mri_ds.training.engine import build_engine, build_objective
from mri_ds.training.expert_parallel import own_state
from mri_ds.training.parity import case as cases
from mri_ds.training.parity.case import PLAIN_KINDS, Case
from mri_ds.training.parity.trace import Trace, check_names, compare

Build = Callable[..., Any]
TIMEOUT_S = 600.0


def run_cases(folder: Path, *, build: Build = build_engine) -> None:
    """Every case of FOLDER/cases.json. `build` makes the engine, given objective, resolved JSON and nothing else."""
    for raw in json.loads((folder / "cases.json").read_text()):
        case = Case(**raw)
        trace = run_case(case, build=build)
        if distributed.rank() == 0:
            plain, *others = (Trace.load(folder / f"{kind}-{case.optimizer}-{case.dtype}.pt") for kind in PLAIN_KINDS)
            check_names(trace.gradients, plain.gradients)
            with (folder / "rows.jsonl").open("a") as rows:
                rows.write(json.dumps({**asdict(case), **compare(trace, plain, others, dtype=case.dtype)}) + "\n")


def run_case(case: Case, *, build: Build = build_engine) -> Trace:
    config = cases.run_config(case.optimizer)
    resolved = ds_config.resolve(cases.ds_json(case), config, world_size=case.ranks)
    del resolved["scheduler"]
    if case.optimizer == "sgd":
        keys = ("lr", "weight_decay")
        resolved["optimizer"] = {"type": "SGD", "params": {key: resolved["optimizer"]["params"][key] for key in keys}}
    torch.manual_seed(cases.SEED)
    engine = build(build_objective(config), resolved)
    shares = (
        list(cases.own_share(cases.global_batch(step), rank=distributed.rank(), ranks=case.ranks, accumulation=case.accumulation))
        for step in range(1, cases.STEPS + 1)
    )
    try:
        return engine_run(engine, shares, watched=cases.WATCHED)
    finally:
        engine.destroy()
        del engine
        gc.collect()


def engine_run(engine: Any, updates: Iterable[list[Batch]], *, watched: Iterable[int]) -> Trace:
    """Trains on this rank's micro-batches of each update, as training.loop.train_step does."""
    trace, watched = Trace(), set(watched)
    for step, batches in enumerate(updates, start=1):
        loss = 0.0
        for batch in batches:
            losses = engine(to_device(batch))
            engine.backward(losses["loss"])
            loss += float(losses["loss"].detach()) / len(batches)
            if engine.is_gradient_accumulation_boundary() and step in watched:
                trace.gradients[step] = gradients(engine)
            engine.step()
        trace.losses.append(distributed.average({"loss": loss})["loss"])
        norm = engine.get_global_grad_norm()
        trace.norms.append(float("nan") if norm is None else float(norm))
    return trace


def gradients(engine: Any) -> dict[str, Tensor]:
    """Full gradients of all parameters by our own names, all experts, before clipping. Every rank must call it."""
    from deepspeed.utils import safe_get_full_grad

    state = {}
    for name, p in engine.module.named_parameters():
        gradient, shape = safe_get_full_grad(p), getattr(p, "ds_shape", p.shape)
        state[name] = torch.zeros(shape) if gradient is None else gradient.detach().float().view(shape).clone()
    state |= dict(engine.module.named_buffers())
    full = own_state(engine.module, state)
    buffers = {name.rpartition(".")[2] for name, _ in engine.module.named_buffers()}
    return {name: g.cpu() for name, g in full.items() if name.rpartition(".")[2] not in buffers}


def main() -> None:
    distributed.start(TIMEOUT_S)
    try:
        run_cases(Path(sys.argv[1]))
    finally:
        distributed.stop()


if __name__ == "__main__":
    main()
