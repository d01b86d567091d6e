"""One rank of a parity run: `python -m mri_ds.training.parity.rank FOLDER`, with RANK and the like in the environment.

Builds engine after engine in the same process group, each as `mri-ds train` builds its own. Rank 0 leaves what each case told in
FOLDER/traceNUMBER.pt.
"""

import gc
import json
import os
import sys
from collections.abc import Callable, Iterable
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
from mri_ds.training.parity.case import Case
from mri_ds.training.parity.trace import Trace

Build = Callable[..., Any]
TIMEOUT_S = 600.0


def run_cases(folder: Path, *, build: Build = build_engine) -> None:
    """Every case of FOLDER/cases.json that todo.json names. `build` makes the engine from objective and resolved JSON."""
    every = json.loads((folder / "cases.json").read_text())
    for number in json.loads((folder / "todo.json").read_text()):
        trace = run_case(Case(**every[number]), build=build)
        if distributed.rank() == 0:
            trace.save(folder / "trace.part")
            os.replace(folder / "trace.part", folder / f"trace{number}.pt")


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
                trace.weights[step], trace.gradients[step] = weights(engine), gradients(engine)
            engine.step()
        trace.losses.append(distributed.average({"loss": loss})["loss"])
        norm = engine.get_global_grad_norm()
        trace.norms.append(float("nan") if norm is None else float(norm))
    return trace


def gradients(engine: Any) -> dict[str, Tensor]:
    """Full gradients of all parameters by our own names, all experts, before clipping. Every rank must call it."""
    from deepspeed.utils import safe_get_full_grad

    return _by_own_names(engine, lambda p: g if (g := safe_get_full_grad(p)) is not None else torch.zeros(_shape(p)))


def weights(engine: Any) -> dict[str, Tensor]:
    """Full float32 weights that the optimiser keeps, by our own names, all experts. Every rank must call it."""
    from deepspeed.utils import safe_get_full_fp32_param

    low, high = (getattr(engine.optimizer, name, []) for name in ("fp16_groups", "fp32_groups"))
    copies = {}  # half precision without ZeRO, of which safe_get_full_fp32_param knows nothing
    if not engine.zero_optimization():
        copies = {p: copy for some, others in zip(low, high, strict=True) for p, copy in zip(some, others, strict=True)}
    return _by_own_names(engine, lambda p: w if (w := safe_get_full_fp32_param(p)) is not None else copies.get(p, p))


def _by_own_names(engine: Any, read: Callable[[Any], Tensor]) -> dict[str, Tensor]:
    state = {name: read(p).detach().float().view(_shape(p)).clone() for name, p in engine.module.named_parameters()}
    state |= dict(engine.module.named_buffers())
    buffers = {name.rpartition(".")[2] for name, _ in engine.module.named_buffers()}
    full = own_state(engine.module, state)
    return {name: value.cpu() for name, value in full.items() if name.rpartition(".")[2] not in buffers}


def _shape(p: Any) -> torch.Size:
    return torch.Size(getattr(p, "ds_shape", p.shape))


def main() -> None:
    distributed.start(TIMEOUT_S)
    try:
        run_cases(Path(sys.argv[1]))
    finally:
        distributed.stop()


if __name__ == "__main__":
    main()
