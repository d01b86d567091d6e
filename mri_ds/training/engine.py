"""From an objective and a resolved JSON to a DeepSpeed engine.

DeepSpeed is given the whole objective (net, losses, learned task weights), so that everything learned is sharded, trained and
saved alike.
"""

import logging
import warnings
from typing import Any

from torch import nn

from mri_ds.config import RunConfig
from mri_ds.heads.parallel import ParallelKANHead
from mri_ds.losses import MultiTaskLoss
from mri_ds.mri_network import BaseMRINet
from mri_ds.nn.kan import OptimizedKANLayer
from mri_ds.objectives.supervised import SupervisedObjective
from mri_ds.objectives.task_loss import loss_of
from mri_ds.training import ds_config as ds
from mri_ds.training.compilation import compile_blocks
from mri_ds.training.expert_parallel import install_expert_product, spread_experts
from mri_ds.training.resident import spare_resident
from mri_ds.training.without_zero import correct_without_zero

VOLUME_HEAD_LR = 2.0  # times the learning rate of the rest


def build_objective(config: RunConfig) -> SupervisedObjective:
    """The network of `config` and its losses, on one device, weights drawn from the global generator."""
    tasks = {name: loss_of(task, config.loss.of(name)) for name, task in config.tasks.items()}
    loss = MultiTaskLoss(tasks, learn_task_weights=config.loss.learn_task_weights)
    return SupervisedObjective(BaseMRINet(config.model, config.tasks), loss)


def build_engine(objective: nn.Module, resolved: dict[str, Any]) -> Any:
    """Hands the objective to DeepSpeed: ZeRO, AutoEP, precision, optimiser and schedule as `resolved` says."""
    import deepspeed

    _import_muon_as_it_is()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # its warnings at start are about choices made here on purpose
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # renamed collectives it still calls
    objective.net.encoder.recompute = resolved["activation_checkpointing"]["level"]  # type: ignore[union-attr]
    spread_experts(objective, resolved["expert_parallel"])
    if resolved["zero_optimization"].get("stage") == 3:
        _gather_for_readers(objective)
    optimizer = resolved["optimizer"]["params"]
    engine, *_ = deepspeed.initialize(
        model=objective,
        model_parameters=parameter_groups(objective, lr=optimizer["lr"], weight_decay=optimizer["weight_decay"]),
        config=ds.for_deepspeed(resolved),
    )
    install_expert_product(engine.module)
    correct_without_zero(engine)
    if resolved.get("compile", {}).get("blocks"):
        compile_blocks(engine.module)
    spare_resident(engine)
    return engine


def _gather_for_readers(objective: nn.Module) -> None:
    """KAN heads read their children's weights, which ZeRO-3 gathers for a child's own forward alone: here for the reader too.

    Not as leaf modules: ZeRO-3 reduces a leaf's gradients in a backward hook of the module, which PyTorch never calls where
    input and output are dicts, and calls before the gradients are there where no input needs one (a frozen encoder).
    """
    from deepspeed.runtime.zero import register_external_parameter

    for module in objective.modules():
        if isinstance(module, (ParallelKANHead, OptimizedKANLayer)):
            for child in module.children():
                for p in child.parameters():
                    register_external_parameter(module, p)


def _import_muon_as_it_is() -> None:
    """ZeRO imports DeepSpeed's Muon optimiser, whatever is trained with, and hands three functions of it to torch.compile.

    That loads PyTorch's code generators: a second of every rank's start, for functions that nothing here calls.
    """
    from deepspeed.runtime import compiler

    compile = compiler.compile
    compiler.compile = lambda: lambda function: function
    try:
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    finally:
        compiler.compile = compile


def parameter_groups(module: nn.Module, *, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices and kernels; none for gains, biases, positions, task weights and volume heads.

    Volume heads learn faster: they are small, see one example per subject where a voxel head sees thousands, and can start
    only once the regions they measure are found.
    """
    groups: dict[str, list[nn.Parameter]] = {"decay": [], "plain": [], "volume_heads": []}
    for name, p in module.named_parameters():
        if name.startswith("net.volume_heads."):
            groups["volume_heads"].append(p)
        else:
            groups["plain" if p.ndim < 2 or name.endswith("positions") else "decay"].append(p)
    settings = {
        "decay": {"lr": lr, "weight_decay": weight_decay},
        "plain": {"lr": lr, "weight_decay": 0.0},
        "volume_heads": {"lr": VOLUME_HEAD_LR * lr, "weight_decay": 0.0},
    }
    return [{"name": name, "params": params, **settings[name]} for name, params in groups.items() if params]
