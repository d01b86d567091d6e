"""One setting of a run: what it is called, its value, why."""

from dataclasses import dataclass
from typing import Any

SCALE, RANKS, STEPS, BATCH = "model.scale", "ranks", "training.steps", "training.global_batch"
TASKS, PATCH, SPACING, STRIDE = "tasks", "data.patch", "data.spacing_mm", "model.token_stride"
BALANCE, CLASS_BALANCE = "data.balance", "loss.class_balance"
ZERO, RECOMPUTE = "zero_optimization.stage", "activation_checkpointing.level"
SPEED = (ZERO, RECOMPUTE)  # of the DeepSpeed JSON; RANKS is of the command line, the rest of the YAML
SAID = "as you said"


@dataclass(frozen=True)
class Choice:
    key: str
    value: Any
    why: str
