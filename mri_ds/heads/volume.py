"""Volume heads: classification and regression of the whole image.

Axes: B batch, D token width, T volume tasks, K classes, R regions (classes of all segmentation tasks).
In: task tokens (B, T, D) and the segmentation logits.  Out: {task: (B, K) logits, or (B,) in the target's unit}.
Each head sees its task token and the soft volume of every region: pooling after normalisation hides size, and size is what
most volume labels are about.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from mri_ds.heads.parallel import ParallelKANHead
from mri_ds.heads.voxel import log_prior

SHARE_SCALE = 2.0  # log shares vary by a few tenths between people; this spreads them over the splines' grid


@dataclass(frozen=True)
class VolumeTask:
    """Outputs of one head: `prior` of its classes, or mean and standard deviation of a regression target."""

    prior: Sequence[float] = ()
    mean: float = 0.0
    std: float = 1.0


class VolumeHeads(nn.Module):
    """Heads for `tasks` in order; `region_priors` are the class priors of the segmentation tasks, in order."""

    def __init__(
        self,
        dim: int,
        tasks: Mapping[str, VolumeTask],
        region_priors: Mapping[str, Sequence[float]],
        *,
        token_features: int = 8,
        use_kan: bool = True,
    ) -> None:
        super().__init__()
        self.tasks = dict(tasks)
        self.region_priors = {task: log_prior(prior) for task, prior in region_priors.items()}
        num_regions = sum(len(prior) for prior in region_priors.values())
        self.token = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, token_features), nn.Tanh())
        self.regions = nn.Linear(num_regions, num_regions) if num_regions else None
        outputs = {name: max(1, len(task.prior)) for name, task in tasks.items()}
        self.heads = ParallelKANHead(token_features + 2 * num_regions, outputs, use_kan=use_kan)

    def forward(self, task_tokens: torch.Tensor, logits: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        features = self.token(task_tokens)  # (B, T, token_features)
        if self.regions is not None:
            shares = torch.cat([log_share(logits[t], prior) for t, prior in self.region_priors.items()], dim=1)
            regions = (SHARE_SCALE * shares).to(features)
            regions = torch.cat([regions, self.regions(regions)], dim=1)  # (B, 2R)
            features = torch.cat([features, regions[:, None].expand(-1, features.shape[1], -1)], dim=-1)
        raw = self.heads({name: features[:, i] for i, name in enumerate(self.tasks)})
        return {name: _finish(raw[name].float(), task) for name, task in self.tasks.items()}


@torch.no_grad()
def log_share(logits: torch.Tensor, log_priors: Sequence[float]) -> torch.Tensor:
    """Log of each class's soft share of the volume, less its log prior: logits (B, K, D, H, W) -> (B, K) float32.

    Differences of logs are log ratios, so "ventricles relative to brain" is one linear combination away. No gradient flows
    back: a regression loss must not bend the segmentation.
    """
    share = logits.float().softmax(dim=1).mean(dim=(2, 3, 4))
    return share.clamp_min(1e-5).log() - torch.tensor(log_priors, device=logits.device)


def _finish(raw: torch.Tensor, task: VolumeTask) -> torch.Tensor:
    if task.prior:
        return raw + torch.tensor(log_prior(task.prior), device=raw.device)
    return raw[:, 0] * task.std + task.mean
