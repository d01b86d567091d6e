"""One rank of ZeRO-3 with and without training/resident.py: FOLDER/told.json, of rank 0, has a row for each."""

import json
import sys
from pathlib import Path

import torch
from deepspeed.comm import comm
from torch import distributed as dist

from mri_ds.training import distributed, ds_config, engine
from mri_ds.training.parity import case as cases
from mri_ds.training.parity.case import Case
from mri_ds.training.parity.rank import TIMEOUT_S, gradients

THRESHOLDS = [10**7, 300]  # all weights are resident, or only some of most modules' are
CASE = Case(3, 2, 2, True, 2, "sgd", "fp32")


def main(folder: Path) -> None:
    distributed.start(TIMEOUT_S)
    try:
        told = {f"{threshold}, {name}": run(threshold, spare) for threshold in THRESHOLDS for name, spare in BUILDS.items()}
        if distributed.rank() == 0:
            (folder / "told.json").write_text(json.dumps(told))
    finally:
        distributed.stop()


BUILDS = {"spared": engine.spare_resident, "as it is": lambda made: None}


def run(threshold: int, spare) -> dict:
    config = cases.run_config(CASE.optimizer)
    raw = cases.ds_json(CASE)
    raw["zero_optimization"]["stage3_param_persistence_threshold"] = threshold
    resolved = ds_config.resolve(raw, config, world_size=2)
    torch.manual_seed(cases.SEED)
    engine.spare_resident = spare
    made = engine.build_engine(engine.build_objective(config), resolved)
    sizes = watch_sizes()
    steps = [train(made, step) for step in (1, 2)]
    made.optimizer.empty_partition_cache()  # as before a checkpoint is loaded
    share = own(3)
    made.eval()
    with torch.no_grad():
        predicted = made.module.net(share[0]["image"])  # as validation does
    made.train()
    steps.append(train(made, 3))
    hooked = [
        name for name, one in made.module.named_modules() if any("_module_hook" in str(h) for h in one._forward_hooks.values())
    ]
    told = {
        "steps": steps,
        "hooked": hooked,
        "alone": sizes.count(1),
        "together": sizes.count(2),
        "predicted": float(sum(p.float().abs().sum() for p in predicted.values())),
        "resident": [name for name, p in made.module.named_parameters() if p.ds_persist],
    }
    made.destroy()
    return told


def own(step: int):
    return list(cases.own_share(cases.global_batch(step), rank=distributed.rank(), ranks=2, accumulation=CASE.accumulation))


def train(made, step: int) -> list[float]:
    """Losses of an update, sum over all gradients' elements of |g|, norm."""
    out = []
    for batch in own(step):
        losses = made(batch)
        made.backward(losses["loss"])
        out.append(float(losses["loss"]))
        if made.is_gradient_accumulation_boundary():
            out.append(float(sum(g.double().abs().sum() for g in gradients(made).values())))
        made.step()
    return [*out, float(made.get_global_grad_norm())]


def watch_sizes() -> list[int]:
    """Number of ranks of every reduce-scatter from now on."""
    sizes: list[int] = []
    kept = getattr(comm.cdb, "_kept_reduce_scatter", comm.cdb.reduce_scatter_tensor)
    comm.cdb._kept_reduce_scatter = kept

    def watched(*args, group=None, **kwargs):
        sizes.append(dist.get_world_size(group))
        return kept(*args, group=group, **kwargs)

    comm.cdb.reduce_scatter_tensor = watched
    return sizes


if __name__ == "__main__":
    main(Path(sys.argv[1]))
