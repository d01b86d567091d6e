"""One rank whose subjects differ from the others' in size and labels, with the same training in one plain process.

`main(FOLDER)` is a rank: trains the layouts of FOLDER/layouts.json and leaves what it told of each. A layout may end with a
variant: "regression", where the first rank has nothing but regression's labels, or "chosen", with that and other losses.
"""

import gc
import json
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

TASKS = ["ball", "size", "radius"]
UPDATES = 5
CHOSEN = {
    "ball": {"dice_kind": "generalised", "tversky": 0.5, "boundary": 0.3, "boundary_kind": "distance", "focal_gamma": 2.0},
    "size": {"classification": "ordinal", "label_smoothing": 0.1},
    "radius": {"regression": "gaussian_nll"},
}


def subject(update: int, rank: int, ranks: int, variant: str = "") -> Batch:
    """The one subject of `rank`: of a size of its own, and with the labels that the update is about."""
    generator = torch.Generator().manual_seed(100 * update + rank)
    size = [(12, 12, 12), (8, 16, 12), (20, 8, 12), (12, 9, 17)][(rank + update) % 4]
    image = torch.randn(1, 1, *size, generator=generator)
    mask = {task: 1.0 for task in TASKS}
    if update == 1:  # another task on each rank
        mask = {task: float(TASKS.index(task) == rank % 3) for task in TASKS}
    elif update == 2:  # the last rank has no label at all
        mask = {task: float(rank != ranks - 1) for task in TASKS}
    elif update == 3:  # one task that nobody has
        mask["radius"] = 0.0
    elif update == 4:  # no label anywhere
        mask = {task: 0.0 for task in TASKS}
    if variant:
        mask = {task: _weight(task, update, rank, ranks) for task in TASKS}
    return {
        "image": image,
        "spacing_mm": torch.ones(1, 3),
        "targets": {"ball": (image[:, 0] > 0.5).long(), "size": torch.tensor([rank % 2]), "radius": torch.tensor([3.0 + rank])},
        "mask": {task: torch.tensor([weight]) for task, weight in mask.items()},
    }


def _has_label(task: str, update: int, rank: int, ranks: int) -> bool:
    """The first rank has labels of a regression alone; beside that every update is about another way of being unequal."""
    if rank == 0:
        return task == "radius" and update != 4
    if update == 1:  # another task on each rank
        return TASKS.index(task) == rank % 3
    if update == 2:  # no label at all on the last rank
        return rank != ranks - 1
    if update == 3:  # regression on the first rank, and nowhere else
        return task != "radius"
    return update != 4  # no label anywhere


def _weight(task: str, update: int, rank: int, ranks: int) -> float:
    """As the loader gives it, see sample.Batch."""
    labelled = sum(_has_label(task, update, other, ranks) for other in range(ranks))
    return ranks / labelled if _has_label(task, update, rank, ranks) else 0.0


def config(ranks: int, variant: str = ""):
    made = cases.run_config("sgd")
    made.training.global_batch = ranks
    made.training.steps = UPDATES
    if variant == "chosen":
        made.model.predict_variance = made.model.deep_supervision = True
        made.loss = LossConfig(tasks=CHOSEN)
    return made


def plain(ranks: int, compute: str, variant: str = "") -> tuple[Trace, ExpertLoad]:
    science = config(ranks, variant)
    torch.manual_seed(cases.SEED)
    objective = build_objective(science)
    load = ExpertLoad(objective, TASKS)
    updates = ([subject(update, rank, ranks, variant) for rank in range(ranks)] for update in range(1, UPDATES + 1))
    settings = {"lr": science.training.lr, "weight_decay": science.training.weight_decay, "betas": science.training.betas}
    numbers = {"start": "fp32", "compute": compute, "watched": range(1, UPDATES + 1), "clip": cases.CLIP}
    return plain_run(objective, updates, optimizer="sgd", **settings, **numbers), load


def main(folder: Path) -> None:
    distributed.start(TIMEOUT_S)
    rank, ranks = distributed.rank(), distributed.world_size()
    for number, (zero, ep, level, *named) in enumerate(json.loads((folder / "layouts.json").read_text())):
        variant = named[0] if named else ""
        science = config(ranks, variant)
        raw = cases.ds_json(cases.Case(zero, ep, ranks, level == "block", 1, "sgd", "fp32"))
        resolved = ds_config.resolve({**raw, "train_micro_batch_size_per_gpu": 1}, science, world_size=ranks)
        del resolved["scheduler"]
        resolved["optimizer"] = {"type": "SGD", "params": {k: resolved["optimizer"]["params"][k] for k in ("lr", "weight_decay")}}
        torch.manual_seed(cases.SEED)
        engine = build_engine(build_objective(science), resolved)
        load = ExpertLoad(engine.module, TASKS)
        updates = ([subject(update, rank, ranks, variant)] for update in range(1, UPDATES + 1))
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
