"""A step whose loss or gradient is not finite moves nothing: no weight, no moment of Adam, on no rank.

DeepSpeed skips such a step in fp16, where its loss scaler needs that; in fp32 and bf16 each kind of optimiser does as it likes
(ZeRO-1 and -2 in bf16 and ZeRO-0 in fp32 take the step). Here every kind asks `Veto` once, after all gradients are reduced and
before anything moves; the ranks agree in one all_reduce, and the optimiser leaves by its own way out for overflows, which
clears what it holds. The backward pass of such a step is finished all the same: its collectives must match on all ranks.
In: an engine, and what each micro-batch's loss was.  Out: StepResult; after `max_in_row` such steps NonFiniteError, with a dump.
The learning rate stays a function of the step's number: a skipped step counts for the schedule.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mri_ds.errors import RunError
from mri_ds.sample import Batch
from mri_ds.training import distributed

MAX_SUBJECTS = 16  # that a message names; the dump has all


class NonFiniteError(RunError):
    """Too many steps in a row without a finite loss and gradient."""


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass of this rank: what it was given and what came out."""

    batch: Batch
    loss: float


@dataclass(frozen=True)
class StepResult:
    """loss: mean over ranks and micro-batches, nan where one of them was not finite. The same on every rank."""

    loss: float
    is_skipped: bool = False
    reason: str = ""  # of a skipped step, for a person
    subject_ids: list[str] = field(default_factory=list)  # whom it was computed on, as far as that can be told

    @property
    def whom(self) -> str:
        """As "subjects sub-1, sub-2"; "" for none."""
        shown = self.subject_ids[:MAX_SUBJECTS] + ["..."] * (len(self.subject_ids) > MAX_SUBJECTS)
        return _list("subject", shown)


class StepGuard:
    """Watches one engine. Per step: `see` each micro-batch, let the engine step, then `end_step`.

    dump(step, micro_batches, facts) writes what a replay needs and returns where; every rank calls it.
    """

    def __init__(
        self, engine: Any, *, max_in_row: int, dump: Callable[[int, Sequence[MicroBatch], dict[str, Any]], Path]
    ) -> None:
        self.engine, self.max_in_row, self.dump = engine, max_in_row, dump
        self.in_row = 0
        self.micro_batches: list[MicroBatch] = []
        self.told: list[float] | None = None  # (ranks with a bad gradient, with a bad loss, mean loss), once agreed
        self.scale = loss_scale(engine)
        scaler: Any = getattr(engine.optimizer, "loss_scaler", None)
        if hasattr(scaler, "raise_error_at_min_scale"):
            scaler.raise_error_at_min_scale = False  # at the least scale it is we who stop, and say where
        install_veto(engine.optimizer, self._veto)

    def see(self, batch: Batch, loss: float) -> None:
        """One micro-batch of this rank and its loss, before the engine steps."""
        if not self.micro_batches:
            self.scale = loss_scale(self.engine)
        self.micro_batches.append(MicroBatch(batch, loss))

    def end_step(self, step: int) -> StepResult:
        """After the last micro-batch's engine.step(). Every rank must call it; all get the same."""
        told = self.told if self.told is not None else self._agree(is_bad=False)  # fp16 found its overflow before it asked
        self.told = None
        is_skipped = bool(getattr(self.engine.optimizer, "overflow", False))
        micro_batches, self.micro_batches = self.micro_batches, []
        if not is_skipped:
            self.in_row = 0
            return StepResult(told[2])
        if self.engine.lr_scheduler is not None:
            self.engine.lr_scheduler.step()
        if told[1] == 0 and loss_scale(self.engine) < self.scale:
            return StepResult(told[2], True, f"the gradient overflowed fp16 at loss scale {self.scale:g}")
        self.in_row += 1
        what = "the loss is not finite" if told[1] else "the gradient is not finite, though the loss is"
        blamed = distributed.gather_json(_blame(micro_batches, is_loss=told[1] > 0))
        ranks = [rank for rank, ids in enumerate(blamed) if ids is not None]
        subjects = [subject for ids in blamed if ids is not None for subject in ids if subject]
        result = StepResult(math.nan if told[1] else told[2], True, f"{what} ({_list('rank', ranks)})", subjects)
        if self.in_row >= self.max_in_row:
            facts = {"reason": result.reason, "subject_ids": subjects, "loss_scale": self.scale}
            self._stop(step, result, self.dump(step, micro_batches, facts))
        return result

    def _stop(self, step: int, result: StepResult, folder: Path) -> None:
        raise NonFiniteError(
            f"step {step}: {result.reason}, {self.in_row} in a row. Look with `mri-ds replay {folder}`, then lower training.lr "
            f"or train in fp32. {result.whom}"
        )

    def _veto(self, is_bad: bool) -> bool:
        self.told = self._agree(is_bad)
        return bool(self.told[0] or self.told[1])

    def _agree(self, is_bad: bool) -> list[float]:
        losses = [m.loss for m in self.micro_batches]
        mean = math.fsum(losses) / len(losses) if all(map(math.isfinite, losses)) else None
        own = torch.tensor([is_bad, mean is None, mean or 0.0], dtype=torch.float64, device=distributed.device())
        bad_gradients, bad_losses, total = distributed.total(own).tolist()
        return [bad_gradients, bad_losses, total / distributed.world_size()]


def install_veto(optimizer: Any, veto: Callable[[bool], bool]) -> None:
    """Makes DeepSpeed's `optimizer` ask `veto(this rank's gradients are not finite)` in each step, and skip where it says so.

    Every kind computes or checks its gradient norm at one place, after which it looks at `overflow` (DeepSpeed 0.19).
    """
    if hasattr(optimizer, "_get_norm_groups"):  # ZeRO-3
        _ask_after(optimizer, "_get_norm_groups", optimizer, veto, lambda norms: any(map(_is_invalid, norms)))
    elif hasattr(optimizer, "scaled_global_norm"):  # ZeRO-1 and -2
        if not optimizer.compute_grad_norm:
            raise ValueError("zero_optimization.compute_grad_norm = false leaves nobody to find a gradient that is not finite")
        _ask_after(optimizer, "scaled_global_norm", optimizer, veto, _is_invalid)
    elif hasattr(optimizer, "get_grads_for_norm"):  # BF16_Optimizer
        _poison_when_vetoed(optimizer, veto)
    elif hasattr(optimizer, "overflow_checker"):  # ZeRO-0 in bf16 and fp16
        checker, check = optimizer.overflow_checker, optimizer.overflow_checker.check
        checker.check = lambda *args, **kwargs: veto(check(*args, **kwargs))
    else:  # ZeRO-0 in fp32: a plain optimiser of torch
        _skip_when_vetoed(optimizer, veto)


def loss_scale(engine: Any) -> float:
    """What the loss is multiplied by before the backward pass: 1 but in fp16."""
    return float(engine.optimizer.loss_scale) if engine.fp16_enabled() else 1.0


def _ask_after(owner: Any, name: str, optimizer: Any, veto: Callable[[bool], bool], is_bad: Callable[[Any], bool]) -> None:
    original = getattr(owner, name)

    def ask(*args: Any, **kwargs: Any) -> Any:
        norms = original(*args, **kwargs)
        optimizer.overflow = veto(is_bad(norms))
        return norms

    setattr(owner, name, ask)


def _poison_when_vetoed(optimizer: Any, veto: Callable[[bool], bool]) -> None:
    """BF16_Optimizer skips where the norm of what this returns is not finite."""
    original = optimizer.get_grads_for_norm

    def ask(for_clipping: bool = False) -> Any:
        grads = original(for_clipping=for_clipping)
        if for_clipping:
            return grads
        dense, experts = grads
        everything = [*dense, *(g for group in experts.values() for g in group)]
        if not veto(not all(bool(g.isfinite().all()) for g in everything)):
            return grads
        return [torch.full_like(g, torch.inf) for g in dense], experts

    optimizer.get_grads_for_norm = ask


def _skip_when_vetoed(optimizer: torch.optim.Optimizer, veto: Callable[[bool], bool]) -> None:
    original = optimizer.step

    def step(*args: Any, **kwargs: Any) -> Any:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        optimizer.overflow = veto(not all(bool(g.isfinite().all()) for g in grads))  # type: ignore[attr-defined]
        return None if optimizer.overflow else original(*args, **kwargs)  # type: ignore[attr-defined]

    optimizer.step = step  # type: ignore[method-assign]


def _is_invalid(norm: Any) -> bool:
    """DeepSpeed writes -1 for a norm that is not finite."""
    value = float(norm)
    return not math.isfinite(value) or value < 0


def _blame(micro_batches: Sequence[MicroBatch], *, is_loss: bool) -> list[str] | None:
    """Subjects of the micro-batches with a bad loss; of all where only the gradient was bad. None: nothing bad on this rank."""
    bad = [m for m in micro_batches if not is_loss or not math.isfinite(m.loss)]
    return [subject for m in bad for subject in m.batch.get("subject_id", [])] if bad else None


def _list(noun: str, items: Sequence[Any]) -> str:
    return f"{noun}{'s' if len(items) > 1 else ''} {', '.join(map(str, items))}" if items else ""
