"""Which experts the tokens visit: counted, kept even, told, and complained of when a few take all.

Axes: L layers, E experts, K experts per token, B batch, N tokens of a subject, T tasks.
Source: balancing by a selection bias after DeepSeek-V3 (2024), section 2.1.2.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mri_ds.training.expert_parallel import moe_layers, router_of

PATIENCE = 5  # logs in a row that show a collapse before it is told


class ExpertLoad:
    """Listens to the routers of `objective`, an nn.Module whose forward takes a Batch.

    Only the forward pass of a training step counts: routers are heard while the objective itself runs forward with gradients,
    so neither recomputation, which happens in the backward pass, nor validation and pictures count a token again.
    The load of a task is that of the tokens of subjects that have a label of it: experts choose by token and know no task, but
    subjects with one kind of label may well differ from others (another scanner, another disease).
    """

    def __init__(self, objective: nn.Module, tasks: Sequence[str]) -> None:
        self.tasks = list(tasks)
        self.layers: list[tuple[str, Any]] = list(moe_layers(objective))
        self._masks: Tensor | None = None  # (B, T) of the micro-batch that runs forward, else None
        if not self.layers:
            return
        self.num_experts, self.top_k = len(router_of(self.layers[0][1]).e_score_correction_bias), self.layers[0][1].top_k
        device = router_of(self.layers[0][1]).e_score_correction_bias.device
        self._in_step = torch.zeros(len(self.layers), self.num_experts, dtype=torch.int64, device=device)  # of this rank
        self._in_window = torch.zeros_like(self._in_step)  # of all ranks
        self._of_tasks = self._in_step.new_zeros(len(self.layers), len(self.tasks), self.num_experts)  # of this rank
        self.shares = torch.full((len(self.layers), self.num_experts), 1 / self.num_experts)  # of the window told last
        self._logs_collapsed = [0] * len(self.layers)
        objective.register_forward_pre_hook(self._open)
        objective.register_forward_hook(self._close, always_call=True)
        for index, (_, layer) in enumerate(self.layers):
            router_of(layer).register_forward_hook(lambda _m, _a, out, index=index: self._hear(index, out[1]))

    @torch.no_grad()
    def balance(self, *, rate: float) -> None:
        """After each step, on all ranks: moves every selection bias towards even load, by what was routed in the step.

        Experts with fewer rows than the mean get a higher bias, the others a lower one. DeepSeek's scores are sigmoids and its
        step a constant; softmax scores are 1/E on average, so here the step is `rate` of that, in proportion to the imbalance:
        constant steps send all tokens to whichever experts have just been raised. Counts are summed over ranks first, so that
        all ranks make the same update.
        """
        if not self.layers:
            return
        _sum_over_ranks(self._in_step)
        self._in_window += self._in_step
        counts = self._in_step.float()
        mean = counts.mean(dim=1, keepdim=True).clamp_min(1e-9)
        steps = rate / self.num_experts * (1 - counts / mean).clamp_min(-1)
        for (_, layer), step in zip(self.layers, steps, strict=True):
            router_of(layer).e_score_correction_bias += step
        self._in_step.zero_()

    def scalars(self) -> dict[str, float]:
        """Load since the last call, most visited expert over mean (1 is even, E / K the worst): {"layer0", "layer0/TASK"}.

        Every rank must call it. A task without a label in that time is left out.
        """
        if not self.layers:
            return {}
        of_tasks = _sum_over_ranks(self._of_tasks.clone())
        out = {}
        for index in range(len(self.layers)):
            out[f"layer{index}"] = load = _load(self._in_window[index])
            self._logs_collapsed[index] = self._logs_collapsed[index] + 1 if load > self.threshold else 0
            for task, counts in zip(self.tasks, of_tasks[index], strict=True):
                if counts.any():
                    out[f"layer{index}/{task}"] = _load(counts)
        self.shares = (self._in_window / self._in_window.sum(dim=1, keepdim=True).clamp_min(1)).cpu()
        self._in_window.zero_()
        self._of_tasks.zero_()
        return out

    @property
    def threshold(self) -> float:
        """The load that counts as a collapse: three quarters of the way, in ratios, from even to the worst possible."""
        return float((self.num_experts / self.top_k) ** 0.75)

    def warnings(self, *, rate: float) -> list[str]:
        """A line for every layer whose load has just been above the threshold for PATIENCE logs; `rate` as `balance` has it."""
        return [
            f"warning: the experts of {self.layers[index][0]} collapse: for {PATIENCE} logs its busiest expert has had over "
            f"{self.threshold:.1f} times its share; raise training.balance_rate (now {rate:g}) or lower training.lr"
            for index in range(len(self.layers))
            if self._logs_collapsed[index] == PATIENCE
        ]

    def _open(self, objective: nn.Module, args: tuple[Any, ...]) -> None:
        if objective.training and torch.is_grad_enabled():
            self._masks = torch.stack([args[0]["mask"][task] > 0 for task in self.tasks], dim=1)

    def _close(self, *_: Any) -> None:
        self._masks = None

    @torch.no_grad()
    def _hear(self, index: int, chosen: Tensor) -> None:
        """chosen (B * N, K), experts of each token, subject after subject."""
        if self._masks is None:
            return
        of_subjects = chosen.reshape(len(self._masks), -1)
        counts = self._in_step.new_zeros(len(self._masks), self.num_experts)
        counts.scatter_add_(1, of_subjects, torch.ones_like(of_subjects))
        self._in_step[index] += counts.sum(dim=0)
        for task in range(len(self.tasks)):
            self._of_tasks[index, task] += counts[self._masks[:, task]].sum(dim=0)


def _load(counts: Tensor) -> float:
    return float(counts.max() / counts.float().mean().clamp_min(1e-9))


def _sum_over_ranks(counts: Tensor) -> Tensor:
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(counts)
    return counts
