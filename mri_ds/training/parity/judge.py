"""What each case is held against: plain runs, one in each number format and with each optimiser, and their rounding.

In float32 a run must follow the plain one: gradients at every watched update, norms and losses. In bf16 gradients cannot follow
for long: ranks round where the plain process does not, and Adam's first step has one size whatever the gradient's, so where
rounding alone decides the sign of an element the weights part at once; by the second update single biases were 12 % apart. So
gradients, and the rounding to expect of them, are those of plain PyTorch at the weights that the run itself had. In either format
the first update must have moved the weights as PyTorch's optimiser moves them with the run's own gradients, and norms and losses
must follow the plain run's.

bf16 keeps 8 bits of every product and every sum, so there is no one right gradient: the same batch whole, or in 2, 4 or 8 pieces
that are added up, gives others, and float32 at the same weights another again. Each of them is as good as the next, and how far
they are from the first is the rounding (see trace.compare).
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mri_ds.sample import Batch
from mri_ds.training import distributed
from mri_ds.training.engine import build_objective
from mri_ds.training.parity import case as cases
from mri_ds.training.parity.case import Case
from mri_ds.training.parity.reference import NEXT_HIGHER, first_update, gradients_at, plain_run
from mri_ds.training.parity.trace import TOLERANCE, Trace, check_names, compare, compare_update

# Equal parts of the batch, whose gradients are added up. The first run counts; those after it tell of its rounding.
PIECES = {"plain": 1, "precise": 1, "halves": 2, "quarters": 4, "single": cases.GLOBAL_BATCH}
KINDS = {"fp32": ["plain", "precise", "single"], "bf16": list(PIECES)}


def write_plain_runs(folder: Path, some: Iterable[Case], *, wanted: Callable[[], bool] = lambda: True) -> None:
    """FOLDER/KIND-OPTIMIZER-DTYPE.pt of every kind that is a run of its own, for what `some` cases are of, while `wanted`.

    Those that lie there already are left as they are.
    """
    for optimizer, dtype in sorted({(case.optimizer, case.dtype) for case in some}):
        for kind in KINDS["fp32"] if dtype == "fp32" else ["plain"]:
            path = folder / f"{kind}-{optimizer}-{dtype}.pt"
            if path.exists():
                continue
            run = _plain_run(kind, optimizer, dtype, wanted)
            if not wanted():
                return
            assert kind != "plain" or min(run.norms) > cases.CLIP, "every update is to be clipped"
            run.save(path.with_suffix(".part"))
            os.replace(path.with_suffix(".part"), path)


def judge(case: Case, run: Trace, folder: Path) -> dict[str, Any]:
    """The row of a case: see trace.compare; "update_error" is that of the first update."""
    plain = Trace.load(folder / f"plain-{case.optimizer}-{case.dtype}.pt")
    check_names(run.gradients, plain.gradients)
    if case.dtype == "fp32":
        others = [Trace.load(folder / f"{kind}-{case.optimizer}-fp32.pt") for kind in KINDS["fp32"][1:]]
    else:
        at, *others = (Trace(gradients=_at(run, kind, case.optimizer)) for kind in KINDS["bf16"])
        plain = replace(plain, gradients=at.gradients)
    row = compare(run, plain, others, dtype=case.dtype)
    first, second = cases.WATCHED[:2]
    objective = build_objective(cases.run_config(case.optimizer))
    moved = first_update(objective, run.weights[first], run.gradients[first], **_recipe(case.optimizer))
    error, worst = compare_update(run.weights[first], run.weights[second], moved, dtype=case.dtype)
    if error > TOLERANCE[case.dtype]:
        row |= {"passed": False, "worst": f"{worst}, moved by update {first}"}
    return {**asdict(case), "update_error": error, **row}


def _plain_run(kind: str, optimizer: str, dtype: str, wanted: Callable[[], bool]) -> Trace:
    torch.manual_seed(cases.SEED)
    return plain_run(
        build_objective(cases.run_config(optimizer)).to(distributed.device()),
        (_share(step, PIECES[kind]) for step in range(1, cases.STEPS + 1) if wanted()),
        start=dtype,
        compute=NEXT_HIGHER[dtype] if kind == "precise" else dtype,
        watched=cases.WATCHED,
        **_recipe(optimizer),
    )


def _at(run: Trace, kind: str, optimizer: str) -> dict[int, dict[str, Tensor]]:
    """Plain gradients in bf16 at each watched update, where the weights are those of `run`."""
    objective = build_objective(cases.run_config(optimizer)).to(distributed.device())
    compute = "fp32" if kind == "precise" else "bf16"
    sum_in = "fp32" if kind == "precise" else "bf16"  # as ranks and micro-batches are added up
    return {
        step: gradients_at(
            objective,
            {name: weight.bfloat16() for name, weight in weights.items()},
            _share(step, PIECES[kind]),
            compute=compute,
            sum_in=sum_in,
        )
        for step, weights in run.weights.items()
    }


def _recipe(optimizer: str) -> dict[str, Any]:
    science = cases.run_config(optimizer).training
    numbers = {"lr": science.lr, "weight_decay": science.weight_decay, "betas": science.betas}
    return {"optimizer": optimizer, "clip": cases.CLIP, **numbers}


def _share(step: int, pieces: int) -> list[Batch]:
    """The global batch of an update in equal pieces."""
    share = cases.own_share(cases.global_batch(step), rank=0, ranks=1, accumulation=pieces)
    return [distributed.to_device(batch) for batch in share]
