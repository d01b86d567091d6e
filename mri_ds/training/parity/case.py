"""What parity runs: the layouts, one small network with every kind of part, and the data that all of them see.

Axes: B batch, C channel, D H W voxels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import gcd
from typing import Any

import torch

from mri_ds.config import RunConfig, validate
from mri_ds.sample import Batch

GLOBAL_BATCH = 8
SIDE = 12  # voxels along each axis
STEPS = 10
WATCHED = (1, 2, STEPS)  # updates whose gradients are compared: ZeRO-3 prefetches by what it saw in the first
SEED = 0
CLIP = 0.25  # below every gradient norm of these runs, so that a wrong norm shows in the losses as well
LR = {"adamw": 2e-4, "sgd": 0.02}

LAYOUTS = [(0, 1), (0, 2), (2, 2), (3, 2), (3, 4)]  # (ZeRO stage, expert-parallel size)
VARIANTS = list(product((False, True), (1, 2), LR))  # (recompute, accumulation, optimiser)


@dataclass(frozen=True)
class Case:
    """One run of STEPS updates: how it is spread, and what it computes with."""

    zero: int
    ep: int
    ranks: int
    recompute: bool
    accumulation: int
    optimizer: str  # a key of LR
    dtype: str  # "fp32" or "bf16"


def all_cases(ranks: int, dtypes: Sequence[str]) -> list[Case]:
    """Everything that `ranks` ranks can run. An expert-parallel size that does not divide them gives way to one that does."""
    layouts = dict.fromkeys((zero, gcd(ep, ranks)) for zero, ep in LAYOUTS)
    return [
        Case(zero, ep, ranks, recompute, accumulation, optimizer, dtype)
        for dtype, (zero, ep), (recompute, accumulation, optimizer) in product(dtypes, layouts, VARIANTS)
    ]


def some_cases(ranks: int, dtypes: Sequence[str]) -> list[Case]:
    """Every layout in every dtype once, with recomputation, accumulation and optimiser taken in turn."""
    every = all_cases(ranks, dtypes)
    return [every[i + (3 * (i // len(VARIANTS))) % len(VARIANTS)] for i in range(0, len(every), len(VARIANTS))]


def run_config(optimizer: str) -> RunConfig:
    """The science of every case: all parts of the full network, as small as they come, and three tasks."""
    return validate(
        {
            "model": {
                "scale": "tiny", "embed_dim": 16, "num_layers": 2, "num_heads": 2, "num_experts": 4, "expert_hidden": 16,
                "stem_channels": 4, "token_stride": [4, 4, 4], "drop_path": 0.0,
            },
            "training": {"steps": STEPS, "global_batch": GLOBAL_BATCH, "lr": LR[optimizer], "seed": SEED, "warmup_fraction": 0.2},
            "tasks": {
                "ball": {"kind": "segmentation", "classes": ["background", "ball"], "class_prior": [0.8, 0.2]},
                "size": {"kind": "classification", "classes": ["small", "large"]},
                "radius": {"kind": "regression", "unit": "mm", "mean": 3.5, "std": 1.0},
            },
        }
    )  # fmt: skip


def ds_json(case: Case) -> dict[str, Any]:
    """The DeepSpeed JSON of a case, before `ds_config.resolve`."""
    return {
        "train_micro_batch_size_per_gpu": GLOBAL_BATCH // case.ranks // case.accumulation,
        "gradient_clipping": CLIP,
        "bf16": {"enabled": case.dtype == "bf16"},
        "zero_optimization": {"stage": case.zero, "stage3_param_persistence_threshold": 100},
        "expert_parallel": {"enabled": True, "autoep_size": case.ep},
        "activation_checkpointing": {"level": "block" if case.recompute else "none"},
    }


def global_batch(step: int) -> Batch:
    """The GLOBAL_BATCH subjects of update `step` (from 1): noisy balls, some of whose labels are missing, none for subject 3."""
    generator = torch.Generator().manual_seed(1000 * SEED + step)
    radius = torch.empty(GLOBAL_BATCH).uniform_(2, 5, generator=generator)
    centre = torch.empty(GLOBAL_BATCH, 3, 1, 1, 1).uniform_(4, 8, generator=generator)
    grid = torch.stack(torch.meshgrid(*[torch.arange(SIDE)] * 3, indexing="ij"))
    ball = (grid - centre).norm(dim=1) < radius.view(-1, 1, 1, 1)
    image = (ball + 0.3 * torch.randn(ball.shape, generator=generator))[:, None]
    has = {
        "ball": torch.tensor([1.0, 1, 1, 0, 1, 1, 0, 1]),
        "size": torch.tensor([1.0, 0, 1, 0, 1, 1, 1, 1]),
        "radius": torch.tensor([0.0, 1, 1, 0, 0, 1, 1, 0]),
    }
    return {
        "image": image,
        "spacing_mm": torch.ones(GLOBAL_BATCH, 3),
        "targets": {"ball": ball.long(), "size": (radius > 3.5).long(), "radius": radius},
        "mask": {task: mask * GLOBAL_BATCH / mask.sum() for task, mask in has.items()},
    }


def own_share(batch: Batch, *, rank: int, ranks: int, accumulation: int) -> Iterator[Batch]:
    """The micro-batches of one rank: subjects are dealt to micro-batch, then rank, then place, as the loader deals them."""
    size = GLOBAL_BATCH // ranks // accumulation
    for micro in range(accumulation):
        first = (micro * ranks + rank) * size

        def cut(value: Any, at: slice = slice(first, first + size)) -> Any:
            return {key: cut(inner) for key, inner in value.items()} if isinstance(value, dict) else value[at]

        yield cut(batch)
