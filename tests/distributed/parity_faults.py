"""One rank of a parity run with faults: FOLDER/faults.json names one for each case."""

import json
import sys
from pathlib import Path

from mri_ds.training import distributed, engine
from mri_ds.training.parity.rank import TIMEOUT_S, run_cases


def main() -> None:
    folder = Path(sys.argv[1])
    faults = iter(json.loads((folder.parent / "faults.json").read_text()))
    distributed.start(TIMEOUT_S)
    try:
        run_cases(folder, build=lambda objective, resolved: FAULTS[next(faults)](objective, resolved))
    finally:
        distributed.stop()


def experts_times_ep(objective, resolved):
    """DeepSpeed issue 6545: the gradients of experts are too large by the expert-parallel size."""
    made = engine.build_engine(objective, resolved)
    for name, p in made.module.named_parameters():
        if ".experts." in name:
            p.register_hook(lambda g: g * resolved["expert_parallel"]["autoep_size"])
    return made


def norm_of_own_part(objective, resolved):
    """DeepSpeed issue 7718: under ZeRO-2 the norm is too small."""
    made = engine.build_engine(objective, resolved)
    whole = made.optimizer.scaled_global_norm
    made.optimizer.scaled_global_norm = lambda *args, **kwargs: whole(*args, **kwargs) * 0.7
    return made


def partial_loss_attached(objective, resolved):
    """A second tensor of the result hangs on the graph: DeepSpeed scales the gradient of each by the accumulation."""
    objective.register_forward_hook(lambda module, args, out: {**out, "loss": out["loss"] * 1.0, "part": out["loss"]})
    return engine.build_engine(objective, resolved)


def uncorrected(objective, resolved):
    """DeepSpeed as it is: without ZeRO its norm and its first step of Adam are wrong."""
    kept = engine.correct_without_zero
    engine.correct_without_zero = lambda made: None
    try:
        return engine.build_engine(objective, resolved)
    finally:
        engine.correct_without_zero = kept


def uncorrected_but_told(objective, resolved):
    """As `uncorrected`, in float32, with the norm that it clips by."""
    made = uncorrected(objective, resolved)
    from deepspeed.runtime.utils import clip_grad_norm_

    def clip() -> None:
        made._global_grad_norm = float(clip_grad_norm_(made.module.parameters(), made.gradient_clipping()))

    made.clip_fp32_gradients = clip
    return made


FAULTS = {f.__name__: f for f in (experts_times_ep, norm_of_own_part, partial_loss_attached, uncorrected, uncorrected_but_told)}

if __name__ == "__main__":
    main()
