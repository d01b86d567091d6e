"""Adds the routers' own losses to what an objective returns, whichever back end its experts have.

In: an objective whose mixtures are AutoEP's, DeepSpeed's or our own, and two coefficients.  Out: its results, "loss" larger by z
times the z-loss plus balance times the balance loss, each a mean over the layers.
A layer's forward returns tokens alone, and AutoEP's is not ours to change, so routers are heard as in training/expert_load.py.
They are heard again where a block is recomputed: that must save the same tensors as the first time, and adds nothing.
Both losses are of the tokens of a rank's micro-batch, as in the paper, so the balance loss depends on how a batch is spread; the
selection bias does not.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mri_ds.losses.routing import balance_loss, router_z_loss
from mri_ds.nn.moe import Gate
from mri_ds.training.expert_parallel import moe_layers, router_of


class RouterPenalty:
    """Listens from now on; with both coefficients 0, or no experts, it does nothing and costs nothing."""

    def __init__(self, objective: nn.Module, *, z: float, balance: float) -> None:
        self.z, self.balance = z, balance
        self._heard: list[Tensor] | None = None  # a penalty per layer of the forward pass that runs, else None
        routers = [router_of(layer) for _, layer in moe_layers(objective)] if z or balance else []
        for router in routers:
            if not isinstance(router, Gate):  # AutoEP's router has its logits from a linear layer inside
                router.gate.register_forward_hook(self._keep_logits)
            router.register_forward_hook(self._hear)
        if routers:
            objective.register_forward_pre_hook(self._open)
            objective.register_forward_hook(self._close)

    def _open(self, objective: nn.Module, args: tuple[Any, ...]) -> None:
        self._heard = [] if objective.training and torch.is_grad_enabled() else None

    def _keep_logits(self, module: nn.Module, args: tuple[Any, ...], logits: Tensor) -> None:
        self._logits = logits

    def _hear(self, router: nn.Module, args: tuple[Any, ...], out: tuple[Tensor, ...]) -> None:
        if not (router.training and torch.is_grad_enabled()):
            return
        logits = out[2] if isinstance(router, Gate) else self._logits
        self._logits = None  # type: ignore[assignment]  # or it would outlive the step
        penalty = self.z * router_z_loss(logits) + self.balance * balance_loss(logits, out[1])
        if self._heard is not None:
            self._heard.append(penalty)

    def _close(self, objective: nn.Module, args: tuple[Any, ...], result: dict[str, Tensor]) -> dict[str, Tensor] | None:
        heard, self._heard = self._heard, None
        if not heard:
            return None
        return {**result, "loss": result["loss"] + torch.stack(heard).mean()}
