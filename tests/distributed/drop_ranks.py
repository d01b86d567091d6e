"""One of two ranks that train with stochastic depth, each with dice of its own.

Writes what it saw: for each way of dropping the losses, the norms of the gradient, and how many samples came to the branches.
"""

import gc
import json
from pathlib import Path

import engines
import torch

STEPS = 4
GATHERED = "zero_optimization.stage3_param_persistence_threshold=0"  # every module call brings its weights together
SETS = [*engines.SETS, "model.drop_path=0.7", "training.balance_rate=0", f"training.steps={STEPS}"]


def main(folder: str) -> None:
    from mri_ds.config import TaskConfig, load_config
    from mri_ds.training import distributed, ds_config
    from mri_ds.training.loop import train_step

    distributed.start(120)
    told = {}
    try:
        for skip in (False, True):
            config = load_config(scale="tiny", overrides=[*SETS, f"model.skip_dropped={str(skip).lower()}"])
            config.tasks = {task: TaskConfig(**facts) for task, facts in engines.TASKS.items()}
            raw = ds_config.read(engines.launches.ROOT / "ds_configs/tiny.json", [GATHERED])
            resolved = ds_config.resolve(raw, config, world_size=2)
            resolved["optimizer"] = {"type": "SGD", "params": {"lr": 0.05, "weight_decay": 0.0}}
            engine = engines._engine(config, resolved)
            seen: list[int] = []
            deepest = [m for name, m in engine.module.named_modules() if name.endswith("blocks.1.attention")]
            assert len(deepest) == 1
            deepest[0].register_forward_pre_hook(lambda module, args, seen=seen: seen.append(len(args[0])))
            rank, losses, norms = distributed.rank(), [], []
            torch.manual_seed(100 + rank)
            for step in range(STEPS):
                mean, _ = train_step(engine, iter([engines.batch_of(step, 4, slice(2 * rank, 2 * rank + 2))]), engines.window())
                losses.append(distributed.average({"loss": mean["loss"]})["loss"])
                norms.append(float(engine.get_global_grad_norm()))
            told["skipping" if skip else "computing all"] = {"losses": losses, "norms": norms, "seen": seen}
            told["zero"] = resolved["zero_optimization"]["stage"]
            told["expert_parallel"] = resolved["expert_parallel"]["autoep_size"]
            engine.destroy()
            del engine, deepest
            gc.collect()
        Path(folder, f"told{rank}.json").write_text(json.dumps(told))
        distributed.barrier()
    finally:
        distributed.stop()
