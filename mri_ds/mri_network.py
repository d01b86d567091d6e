"""BaseMRINet: the multi-task MRI transformer, from volume to one prediction per task.

Axes: B batch, C channel, D H W voxels, N tokens, D width, K classes.

    image (B, C, D, H, W)
      -> differential features -> stem: skips at full and half resolution
      -> three-scale cube embedding -> encoder: attention and mixture of experts -> tokens (B, N, D)
      -> decoder with skips -> voxel heads          {segmentation task: logits (B, K, D, H, W)}
      -> cross-task attention -> KAN volume heads   {classification task: logits (B, K); regression task: (B,) in its unit}

This file is the only reader of ModelConfig; everything it builds takes plain values.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mri_ds.config import SCALES, ModelConfig, RunConfig, TaskConfig, load_config
from mri_ds.heads.volume import USUAL_STD, RegionStatistics, VolumeHeads, VolumeTask
from mri_ds.heads.voxel import VoxelHeads, log_prior
from mri_ds.nn.convolution import Stem
from mri_ds.nn.cross_task import CrossTaskAttention
from mri_ds.nn.decoder import Decoder
from mri_ds.nn.embedding import OptimizedCubeEmbedding
from mri_ds.nn.gradients import DifferentialFeatures
from mri_ds.nn.recomputation import recomputed
from mri_ds.nn.transformer import Encoder

Tasks = Mapping[str, TaskConfig]


class BaseMRINet(nn.Module):
    """One network for all `tasks`, any volume size.

    >>> net = create_basic_net({"tissue": TaskConfig(kind="segmentation", classes=["background", "brain"])}, scale="tiny")
    >>> net(torch.randn(1, 1, 20, 24, 17))["tissue"].shape
    torch.Size([1, 2, 20, 24, 17])
    """

    def __init__(self, model: ModelConfig, tasks: Tasks) -> None:
        super().__init__()
        regions = {name: _region_statistics(task) for name, task in tasks.items() if task.kind == "segmentation"}
        voxel_priors = {name: _prior(task) for name, task in tasks.items() if task.kind == "segmentation"}
        volume_tasks = {name: _volume_task(task) for name, task in tasks.items() if task.kind != "segmentation"}
        if not tasks:
            raise ValueError("a network needs at least one task")
        self.stride = model.token_stride
        self.features = DifferentialFeatures(model.in_channels, model.gradient_scales_mm) if model.use_gradients else None
        in_channels = self.features.out_channels if self.features is not None else model.in_channels
        width = model.stem_channels
        self.stem = Stem(in_channels, width)
        self.embedding = OptimizedCubeEmbedding(
            4 * width,
            model.embed_dim,
            stride=self.stride,
            multi_scale=model.use_multi_scale,
            every_token=model.dense_double_cubes,
        )
        self.encoder = Encoder(
            model.embed_dim,
            model.num_layers,
            model.num_heads,
            num_experts=model.num_experts,
            expert_hidden=model.expert_hidden,
            top_k=model.top_k,
            use_moe=model.use_moe,
            residual_experts=model.residual_experts,
            window=model.window if model.attention == "windowed" else None,
            drop_path=model.drop_path,
            skip_dropped=model.skip_dropped,
            attention_dropout=model.attention_dropout,
            attention_backends=model.attention_backends,
        )
        self.decoder = (
            Decoder(model.embed_dim, width, num_layers=model.decoder_layers, window=model.window) if voxel_priors else None
        )
        self.voxel_heads = (
            VoxelHeads(width, 4 * width, voxel_priors, deep_supervision=model.deep_supervision) if voxel_priors else None
        )
        num_volume = len(volume_tasks)
        self.cross_task = (
            CrossTaskAttention(model.embed_dim, model.num_heads, num_volume, branches=model.task_branches)
            if num_volume and model.use_cross_task
            else None
        )
        self.volume_heads = (
            VolumeHeads(model.embed_dim, volume_tasks, regions, use_kan=model.use_kan, predict_variance=model.predict_variance)
            if num_volume
            else None
        )
        self.num_volume_tasks = num_volume

    def forward(self, image: torch.Tensor, spacing_mm: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """image (B, C, D, H, W) normalised, spacing_mm (B, 3) of its grid (None: 1 mm) -> {task: prediction}."""
        padded = pad_to_multiple(image, self.stride)
        run = recomputed if self.encoder.recompute == "full" else _run
        full, half, tokens, grid, fine = run(self._embed, padded, spacing_mm)
        tokens = self.encoder(tokens, grid)
        out: dict[str, torch.Tensor] = {}
        if self.decoder is not None:
            logits = run(self._decode, tokens, grid, fine, half, full)
            out = {task: _unpad(x, padded.shape[2:], image.shape[2:]) for task, x in logits.items()}
        if self.volume_heads is not None:
            if self.cross_task is not None:
                task_tokens = self.cross_task(tokens)
            else:
                task_tokens = tokens.mean(dim=1, keepdim=True).expand(-1, self.num_volume_tasks, -1)
            out |= self.volume_heads(task_tokens, out)
        return out

    def _embed(self, image: torch.Tensor, spacing_mm: torch.Tensor | None) -> tuple[Any, ...]:
        features = image if self.features is None else self.features(image, spacing_mm)
        full, half = self.stem(features)
        return full, half, *self.embedding(half)

    def _decode(self, *tokens_and_skips: Any) -> dict[str, torch.Tensor]:
        return self.voxel_heads(*self.decoder(*tokens_and_skips))  # type: ignore[misc, no-any-return]


def _run(part: Callable[..., Any], *args: Any) -> Any:
    return part(*args)


def create_basic_net(tasks: Tasks, *, scale: str = "small", in_channels: int = 1) -> BaseMRINet:
    """The network for light experiments: one embedding scale, dense feed-forward layers, plain heads."""
    basic = {"use_multi_scale": False, "use_moe": False, "use_kan": False, "use_cross_task": False, "use_gradients": False}
    return BaseMRINet(ModelConfig(**{**SCALES[scale], **basic}, scale=scale, in_channels=in_channels), tasks)  # type: ignore[arg-type]


def create_sota_net(tasks: Tasks, *, scale: str = "small", in_channels: int = 1) -> BaseMRINet:
    """The full network, every component on."""
    return BaseMRINet(ModelConfig(**SCALES[scale], scale=scale, in_channels=in_channels), tasks)  # type: ignore[arg-type]


def pad_to_multiple(image: torch.Tensor, multiple: tuple[int, ...]) -> torch.Tensor:
    """Pads (B, C, D, H, W) behind each axis with its edge values up to a multiple; unchanged where it fits."""
    missing = [-size % m for size, m in zip(image.shape[2:], multiple, strict=True)]
    if not any(missing):
        return image
    return F.pad(image, [p for m in reversed(missing) for p in (0, m)], mode="replicate")


def _unpad(logits: torch.Tensor, padded: torch.Size, shape: torch.Size) -> torch.Tensor:
    """Drops what was padded behind each axis; logits may be on a coarser grid, whose last voxels then stand half outside."""
    d, h, w = (-(-size * n // p) for n, p, size in zip(shape, padded, logits.shape[2:], strict=True))
    return logits[:, :, :d, :h, :w]


def describe(scale: str) -> dict[str, Any]:
    """What a scale is, counted from the constructed module on the meta device, with the three demo tasks."""
    config = load_config(scale=scale).model
    tasks = {
        "tissue": TaskConfig(kind="segmentation", classes=[f"class{i}" for i in range(7)]),
        "lesion": TaskConfig(kind="classification", classes=["none", "few", "many"]),
        "age": TaskConfig(kind="regression", unit="years"),
    }
    counted = count_parameters(RunConfig(model=config, tasks=tasks))
    return {
        "scale": scale,
        "embed_dim": config.embed_dim,
        "num_layers": config.num_layers,
        "num_heads": config.num_heads,
        "num_experts": config.num_experts,
        "expert_hidden": config.expert_hidden,
        "top_k": config.top_k,
        **counted,
    }


def count_parameters(config: RunConfig) -> dict[str, int]:
    """Of a run's network: all, those of experts, and those that one token meets. Nothing is allocated."""
    with torch.device("meta"):
        net = BaseMRINet(config.model, config.tasks)
    total = sum(p.numel() for p in net.parameters())
    experts = sum(p.numel() for name, p in net.named_parameters() if ".experts." in name)
    active = total - experts + experts * config.model.top_k // config.model.num_experts
    return {"parameters_total": total, "parameters_experts": experts, "parameters_active": active}


def _prior(task: TaskConfig) -> list[float]:
    return task.class_prior or [1 / len(task.classes)] * len(task.classes)


def _region_statistics(task: TaskConfig) -> RegionStatistics:
    mean = task.log_share_mean or log_prior(_prior(task))
    return RegionStatistics(mean, task.log_share_std or [USUAL_STD] * len(mean))


def _volume_task(task: TaskConfig) -> VolumeTask:
    return VolumeTask(prior=_prior(task)) if task.kind == "classification" else VolumeTask(mean=task.mean, std=task.std)
