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

from mri_ds.config import SHARE_FLOOR
from mri_ds.heads.parallel import ParallelKANHead
from mri_ds.heads.voxel import log_prior
from mri_ds.nn.slabs import is_large, slabs
from mri_ds.sample import log_variance

USUAL_STD = 0.5  # of a log share, where no training data have told
LEAST_STD = 0.05  # or the background, which hardly varies, would be all noise
FURTHEST = 3.0  # standard deviations that a region may seem from the mean: early predictions are far off


@dataclass(frozen=True)
class VolumeTask:
    """Outputs of one head: `prior` of its classes, or mean and standard deviation of a regression target."""

    prior: Sequence[float] = ()
    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True)
class RegionStatistics:
    """Mean and standard deviation, over training subjects that show a class, of the log of its share of the volume: (K,) each."""

    mean: Sequence[float]
    std: Sequence[float]


class VolumeHeads(nn.Module):
    """Heads for `tasks` in order; `regions` has the statistics of the segmentation tasks, in order."""

    def __init__(
        self,
        dim: int,
        tasks: Mapping[str, VolumeTask],
        regions: Mapping[str, RegionStatistics],
        *,
        token_features: int = 8,
        use_kan: bool = True,
        predict_variance: bool = False,
    ) -> None:
        super().__init__()
        self.tasks = dict(tasks)
        self.predict_variance = predict_variance  # of regression tasks, see sample.log_variance
        self.regions_have_gradient = False  # an explanation needs the gradient that training must not have, see relative_size
        self.region_statistics = dict(regions)
        num_regions = sum(len(region.mean) for region in regions.values())
        self.token = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, token_features), nn.Tanh())
        self.regions = nn.Linear(num_regions, num_regions) if num_regions else None
        outputs = {name: len(task.prior) or 1 + predict_variance for name, task in tasks.items()}
        self.heads = ParallelKANHead(token_features + 2 * num_regions, outputs, use_kan=use_kan)

    def forward(self, task_tokens: torch.Tensor, logits: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        features = self.token(task_tokens)  # (B, T, token_features)
        if self.regions is not None:
            sizes_of = _relative_size if self.regions_have_gradient else relative_size
            sizes = [sizes_of(logits[task], region) for task, region in self.region_statistics.items()]
            regions = torch.cat(sizes, dim=1).to(features)
            regions = torch.cat([regions, self.regions(regions)], dim=1)  # (B, 2R)
            features = torch.cat([features, regions[:, None].expand(-1, features.shape[1], -1)], dim=-1)
        raw = self.heads({name: features[:, i] for i, name in enumerate(self.tasks)})
        out = {name: _finish(raw[name].float(), task) for name, task in self.tasks.items()}
        if self.predict_variance:
            out |= {log_variance(name): raw[name][:, 1].float() for name, task in self.tasks.items() if not task.prior}
        return out


@torch.no_grad()
def relative_size(logits: torch.Tensor, region: RegionStatistics) -> torch.Tensor:
    """How large each class is among the training subjects: logits (B, K, D, H, W) -> (B, K) float32, standard deviations.

    Taken of the log of its soft share of the volume: differences of logs are log ratios, so "ventricles relative to brain" is one
    linear combination away. No gradient flows back: a regression loss must not bend the segmentation.
    """
    return _relative_size(logits, region)


def _relative_size(logits: torch.Tensor, region: RegionStatistics) -> torch.Tensor:
    share = _shares(logits).clamp_min(SHARE_FLOOR)
    mean, std = (torch.tensor(x, device=logits.device, dtype=torch.float32) for x in (region.mean, region.std))
    return ((share.log() - mean) / std.clamp_min(LEAST_STD)).clamp(-FURTHEST, FURTHEST)


def _shares(logits: torch.Tensor) -> torch.Tensor:
    if not is_large(logits.shape):
        return logits.float().softmax(dim=1).mean(dim=(2, 3, 4))
    depth = logits.shape[2]
    parts = [
        logits[:, :, a:b].float().softmax(dim=1).sum(dim=(2, 3, 4), dtype=torch.float64)
        for a, b in slabs(depth, logits.numel() // depth)
    ]
    return (torch.stack(parts).sum(dim=0) / logits[0, 0].numel()).float()


def _finish(raw: torch.Tensor, task: VolumeTask) -> torch.Tensor:
    if task.prior:
        return raw + torch.tensor(log_prior(task.prior), device=raw.device)
    return raw[:, 0] * task.std + task.mean
