"""One rank of a parity run with faults: FOLDER/faults.json names one for each case."""

import json
import sys
from pathlib import Path

import torch

from mri_ds.training import distributed, ds_config, engine
from mri_ds.training.parity import case as cases
from mri_ds.training.parity.case import Case
from mri_ds.training.parity.rank import TIMEOUT_S, gradients, run_cases


def main() -> None:
    folder = Path(sys.argv[1])
    faults = iter(json.loads((folder.parent / "faults.json").read_text()))
    distributed.start(TIMEOUT_S)
    try:
        run_cases(folder, build=lambda objective, resolved: FAULTS[next(faults)](objective, resolved))
        norms = norms_of_spread_experts()
        if distributed.rank() == 0:
            (folder / "norms.json").write_text(json.dumps(norms))
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


def divided_by_accumulation_again(objective, resolved):
    """What DeepSpeed before 0.19 did to a loss beside which other losses hung on the graph."""
    made = engine.build_engine(objective, resolved)
    for p in made.module.parameters():
        p.register_hook(lambda g: g / resolved["gradient_accumulation_steps"])
    return made


def uncorrected(objective, resolved):
    """DeepSpeed as it is: without ZeRO its norm and its first step of Adam are wrong."""
    kept = engine.correct_without_zero
    engine.correct_without_zero = lambda made: None
    try:
        return engine.build_engine(objective, resolved)
    finally:
        engine.correct_without_zero = kept


def norms_of_spread_experts() -> dict[str, float]:
    """Of one backward pass without ZeRO, experts over 2 ranks, in which experts make most of the norm: told by three."""
    from deepspeed.runtime.utils import clip_grad_norm_

    case = Case(0, 2, 2, False, 1, "sgd", "fp32")
    config = cases.run_config("sgd")
    made = engine.build_engine(engine.build_objective(config), ds_config.resolve(cases.ds_json(case), config, world_size=2))
    for name, p in made.module.named_parameters():
        if ".experts." in name:
            p.register_hook(lambda g: g * (2000 if distributed.rank() else 1000))
    (batch,) = cases.own_share(cases.global_batch(1), rank=distributed.rank(), ranks=2, accumulation=1)
    made.backward(made(batch)["loss"])
    gathered = float(torch.cat([g.flatten() for g in gradients(made).values()]).double().norm())
    kept = [p.grad.clone() for p in made.module.parameters()]
    deepspeed = float(clip_grad_norm_(made.module.parameters(), cases.CLIP))
    for p, grad in zip(made.module.parameters(), kept, strict=True):
        p.grad = grad
    made.step()
    return {"gathered": gathered, "deepspeed": deepspeed, "ours": float(made.get_global_grad_norm())}


FAULTS = {f.__name__: f for f in (experts_times_ep, norm_of_own_part, divided_by_accumulation_again, uncorrected)}

if __name__ == "__main__":
    main()
