"""The oracle: the same training in plain PyTorch and one process. Nothing here may import DeepSpeed.

Weights are kept in float32 (float64 for the precise run), rounded to what the network computes with; gradients of micro-batches
are summed in that same precision, clipped by their global norm, and given to a torch optimiser.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mri_ds.sample import Batch
from mri_ds.training.engine import parameter_groups
from mri_ds.training.parity.trace import Trace

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}
NEXT_HIGHER = {"bf16": "fp32", "fp32": "fp64"}


def plain_run(
    objective: nn.Module,
    updates: Iterable[list[Batch]],
    *,
    optimizer: str,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    clip: float,
    start: str,
    compute: str,
    watched: Iterable[int],
) -> Trace:
    """Trains `objective` on the micro-batches of each update. `start`: what the first weights are rounded to."""
    keep = torch.float64 if compute == "fp64" else torch.float32
    names = {p: name for name, p in objective.named_parameters()}
    masters = {p: nn.Parameter(p.detach().to(DTYPES[start]).to(keep)) for p in names}
    update = _optimizer(objective, masters, optimizer=optimizer, lr=lr, weight_decay=weight_decay, betas=betas)
    if compute == "fp64":
        objective.double()  # buffers as well, which stay in float32 otherwise
    for p, master in masters.items():
        p.data = master.detach().to(DTYPES[compute])
    trace, watched = Trace(), set(watched)
    for step, batches in enumerate(updates, start=1):
        if step in watched:
            trace.weights[step] = {names[p]: master.detach().cpu().clone() for p, master in masters.items()}
        trace.losses.append(_gradients(objective, [_cast(batch, keep) for batch in batches], masters))
        gradients = {names[p]: master.grad for p, master in masters.items()}
        if step in watched:
            trace.gradients[step] = {name: g.detach().cpu().clone() for name, g in gradients.items() if g is not None}
        trace.norms.append(_clip([master.grad for master in masters.values()], clip))
        update.step()
        for p, master in masters.items():
            p.data.copy_(master.data)
    return trace


def gradients_at(
    objective: nn.Module, weights: Mapping[str, Tensor], batches: list[Batch], *, compute: str, sum_in: str = "fp32"
) -> dict[str, Tensor]:
    """Gradient of the mean loss over `batches`, added up in `sum_in`, of a network whose weights are these (by name)."""
    for name, p in objective.named_parameters():
        p.data = weights[name].to(p.device, DTYPES[compute])
    sums: Any = {p: p.detach().to(DTYPES[sum_in]) for p in objective.parameters()}
    _gradients(objective, [_cast(batch, torch.float32) for batch in batches], sums)
    return {name: sums[p].grad.float().cpu() for name, p in objective.named_parameters()}


def first_update(
    objective: nn.Module,
    weights: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    *,
    clip: float,
    optimizer: str,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
) -> dict[str, Tensor]:
    """What float32 `weights` become in the first update of a run, given its gradients before clipping; both by name."""
    names = {p: name for name, p in objective.named_parameters()}
    masters = {p: nn.Parameter(weights[name].clone()) for p, name in names.items()}
    update = _optimizer(objective, masters, optimizer=optimizer, lr=lr, weight_decay=weight_decay, betas=betas)
    for p, master in masters.items():
        master.grad = gradients[names[p]].to(master.dtype, copy=True)
    _clip([master.grad for master in masters.values()], clip)
    update.step()
    return {names[p]: master.detach() for p, master in masters.items()}


def _optimizer(
    objective: nn.Module,
    masters: Mapping[nn.Parameter, nn.Parameter],
    *,
    optimizer: str,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
) -> torch.optim.Optimizer:
    groups = [
        {**group, "params": [masters[p] for p in group["params"]]}
        for group in parameter_groups(objective, lr=lr, weight_decay=weight_decay)
    ]
    return torch.optim.AdamW(groups, betas=betas) if optimizer == "adamw" else torch.optim.SGD(groups)


def _gradients(objective: nn.Module, batches: list[Batch], masters: Mapping[nn.Parameter, nn.Parameter]) -> float:
    """Mean loss over `batches`; leaves its gradient in `masters`."""
    total = 0.0
    for master in masters.values():
        master.grad = torch.zeros_like(master)
    for batch in batches:
        loss = objective(batch)["loss"]
        (loss / len(batches)).backward()
        total += float(loss.detach()) / len(batches)
        for p, master in masters.items():
            if p.grad is not None:
                assert master.grad is not None
                master.grad += p.grad
                p.grad = None
    return total


def _clip(gradients: list[Any], limit: float) -> float:
    """Scales the gradients to a norm of at most `limit`; returns what the norm was."""
    norm = float(torch.cat([g.flatten().double() for g in gradients]).norm())
    for g in gradients:
        g *= min(1.0, limit / (norm + 1e-6))
    return norm


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, dict):
        return {key: _cast(inner, dtype) for key, inner in value.items()}
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
