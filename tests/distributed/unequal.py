"""One rank whose subjects differ from the others' in size and labels, with the same training in one plain process.

`python unequal.py FOLDER` is a rank: trains the layouts of FOLDER/layouts.json and leaves what it told of each.
"""

import gc
import json
import sys
from pathlib import Path

import torch

from mri_ds.config import LossConfig
from mri_ds.sample import Batch
from mri_ds.training import distributed, ds_config
from mri_ds.training.engine import build_engine, build_objective
from mri_ds.training.expert_load import ExpertLoad
from mri_ds.training.parity import case as cases
from mri_ds.training.parity.rank import TIMEOUT_S, engine_run
from mri_ds.training.parity.reference import plain_run
from mri_ds.training.parity.trace import Trace
from mri_ds.training.router_penalty import RouterPenalty

TASKS = ["ball", "size", "radius"]
UPDATES = 5
CHOSEN = {
    "tasks": {
        "ball": {"dice_kind": "generalised", "tversky": 0.5, "boundary": 0.3, "boundary_kind": "distance", "focal_gamma": 2.0},
        "size": {"classification": "ordinal", "label_smoothing": 0.1},
        "radius": {"regression": "gaussian_nll"},
    },
}


def has_label(task: str, update: int, rank: int, ranks: int) -> bool:
    """Whether the one subject of `rank` has a label of `task`: every update is about another way of being unequal."""
    if update == 1:  # another task on each rank
        return TASKS.index(task) == rank % 3
    if update == 2:  # the last rank has no label at all, the first only regression
        return rank != ranks - 1 and (rank > 0 or task == "radius")
    if update == 3:  # one task that nobody has
        return task != "radius"
    return update != 4  # no label anywhere


def subject(update: int, rank: int, ranks: int) -> Batch:
    """The one subject of `rank`: of a size of its own, and with the labels that the update is about."""
    generator = torch.Generator().manual_seed(100 * update + rank)
    size = [(12, 12, 12), (8, 16, 12), (20, 8, 12), (12, 9, 17)][(rank + update) % 4]
    image = torch.randn(1, 1, *size, generator=generator)
    mask = {}
    for task in TASKS:  # weights as the loader gives them, see sample.Batch
        labelled = sum(has_label(task, update, other, ranks) for other in range(ranks))
        mask[task] = ranks / labelled if has_label(task, update, rank, ranks) else 0.0
    return {
        "image": image,
        "spacing_mm": torch.ones(1, 3),
        "targets": {"ball": (image[:, 0] > 0.5).long(), "size": torch.tensor([rank % 2]), "radius": torch.tensor([3.0 + rank])},
        "mask": {task: torch.tensor([weight]) for task, weight in mask.items()},
    }


def config(ranks: int, losses: str):
    """`losses` "default"; "chosen": others for each kind of task, with the outputs that they need; "routed": the routers' own."""
    made = cases.run_config("sgd")
    made.training.global_batch = ranks
    made.training.steps = UPDATES
    if losses == "chosen":
        made.model.predict_variance = made.model.deep_supervision = True
        made.loss = LossConfig(**CHOSEN)
    if losses == "routed":
        made.loss = LossConfig(router_z=0.1, router_balance=0.2)
    return made


def plain(ranks: int, compute: str, losses: str) -> tuple[Trace, ExpertLoad]:
    science = config(ranks, losses)
    torch.manual_seed(cases.SEED)
    objective = build_objective(science)
    load = ExpertLoad(objective, TASKS)
    RouterPenalty(objective, z=science.loss.router_z, balance=science.loss.router_balance)
    updates = ([subject(update, rank, ranks) for rank in range(ranks)] for update in range(1, UPDATES + 1))
    settings = {"lr": science.training.lr, "weight_decay": science.training.weight_decay, "betas": science.training.betas}
    numbers = {"start": "fp32", "compute": compute, "watched": range(1, UPDATES + 1), "clip": cases.CLIP}
    return plain_run(objective, updates, optimizer="sgd", **settings, **numbers), load


def main() -> None:
    folder = Path(sys.argv[1])
    distributed.start(TIMEOUT_S)
    rank, ranks = distributed.rank(), distributed.world_size()
    for number, (zero, ep, level, losses) in enumerate(json.loads((folder / "layouts.json").read_text())):
        science = config(ranks, losses)
        raw = cases.ds_json(cases.Case(zero, ep, ranks, level == "block", 1, "sgd", "fp32"))
        resolved = ds_config.resolve({**raw, "train_micro_batch_size_per_gpu": 1}, science, world_size=ranks)
        del resolved["scheduler"]
        resolved["optimizer"] = {"type": "SGD", "params": {k: resolved["optimizer"]["params"][k] for k in ("lr", "weight_decay")}}
        torch.manual_seed(cases.SEED)
        engine = build_engine(build_objective(science), resolved)
        load = ExpertLoad(engine.module, TASKS)
        RouterPenalty(engine.module, z=science.loss.router_z, balance=science.loss.router_balance)
        updates = ([subject(update, rank, ranks)] for update in range(1, UPDATES + 1))
        trace = engine_run(engine, updates, watched=range(1, UPDATES + 1))
        load.balance(rate=0.1)
        told = load.scalars()
        if rank == 0:
            trace.save(folder / f"trace{number}.pt")
            (folder / f"load{number}.json").write_text(json.dumps([load.shares.tolist(), told]))
        engine.destroy()
        del engine
        gc.collect()
    distributed.stop()


if __name__ == "__main__":
    main()
