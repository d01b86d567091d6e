"""Loss spikes: a run whose loss jumps goes back to the weights of its last checkpoint, and on with the data after the jump.

Weights and Adam return to the checkpoint; the step's number, the learning rate and the data go on, so the subjects around the
jump are not shown to the restored weights: with them it would jump again. A run that is resumed does the same at the same step.
Source: Chowdhery et al. 2022 (PaLM), section 5.1, who restarted 100 steps earlier and left out the data about the spike.
"""

import math
import statistics
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

from mri_ds.errors import RunError

WINDOW = 50  # steps that say what is usual
LEAST = 20  # before so many have been seen nothing is unusual
FROM_MAD = 1.4826  # of normally distributed losses the standard deviation is this many median absolute deviations
MAX_ROLLBACKS = 3  # to one checkpoint: more, and it is not the data


class SpikeWatch:
    """`is_spike` says whether a step's loss is far above the last ones. deviations 0: never."""

    def __init__(self, deviations: float) -> None:
        self.deviations = deviations
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.rollbacks: Counter[int] = Counter()

    def is_spike(self, loss: float) -> bool:
        """Takes in the loss of a step; one that spikes, or is not finite, does not count as usual from now on."""
        if not self.deviations or not math.isfinite(loss):
            return False
        if len(self.losses) >= LEAST and loss > self._limit():
            return True
        self.losses.append(loss)
        return False

    def roll_back(self, engine: Any, resume: Callable[[Callable[[Mapping[str, Any]], None]], int], step: int) -> int:
        """After step `step`: the weights and moments of the last checkpoint, whose step is returned; 0 where there is none.

        resume(check_data) loads it and returns its step. Every rank must call this. Raises RunError where one checkpoint has
        been gone back to MAX_ROLLBACKS times.
        """
        skipped = engine.skipped_steps
        start = resume(lambda state: None)  # the data go on from here
        if not start:
            return 0
        self.rollbacks[start] += 1
        if self.rollbacks[start] > MAX_ROLLBACKS:
            times = f"{MAX_ROLLBACKS} times"
            raise RunError(f"step {step}: the loss jumped again after going back to step {start} {times}: lower training.lr")
        engine.lr_scheduler.step(step - 1)  # it numbers steps from 0
        engine.global_steps, engine.skipped_steps = step, skipped
        return start

    def state(self) -> list[float]:
        """What a checkpoint keeps, for a resumed run to decide alike."""
        return list(self.losses)

    def load_state(self, state: list[float]) -> None:
        self.losses = deque(state, maxlen=WINDOW)

    def _limit(self) -> float:
        """Robust, because a spike that crept in must not hide the next."""
        middle = statistics.median(self.losses)
        spread = FROM_MAD * statistics.median(abs(loss - middle) for loss in self.losses)
        return middle + self.deviations * max(spread, 1e-6)
