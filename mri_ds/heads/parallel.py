"""ParallelKANHead: Kolmogorov-Arnold heads for many tasks at once.

Axes: B batch, I input features, O outputs of a task.
In: {task: (B, I)}.  Out: {task: (B, O)}.
Source: KAN, Liu et al. 2024.
"""

from collections.abc import Mapping

import torch
from torch import nn

from mri_ds.nn.kan import OptimizedKANLayer


class ParallelKANHead(nn.Module):
    """Two KAN layers per task, I -> hidden -> O; with `use_kan=False` the same shape as a plain perceptron."""

    def __init__(self, in_features: int, outputs: Mapping[str, int], *, hidden: int = 16, use_kan: bool = True) -> None:
        super().__init__()

        def head(num_outputs: int) -> nn.Sequential:
            if not use_kan:
                return nn.Sequential(nn.Linear(in_features, hidden), nn.SiLU(), nn.Linear(hidden, num_outputs))
            return nn.Sequential(OptimizedKANLayer(in_features, hidden), OptimizedKANLayer(hidden, num_outputs))

        self.tasks = list(outputs)
        self.heads = nn.ModuleList(head(n) for n in outputs.values())

    def forward(self, features: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {task: head(features[task]) for task, head in zip(self.tasks, self.heads, strict=True)}
