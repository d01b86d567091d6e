"""How many weights a configuration has, by what happens to them on ranks. Exact: counted on the meta device."""

from dataclasses import dataclass
from functools import lru_cache

import torch

from mri_ds.config import RunConfig, TrainingConfig
from mri_ds.training.engine import build_objective
from mri_ds.training.plan.layout import Layout


@dataclass(frozen=True)
class Group:
    """Weights of which each rank computes with `elements`, and which ZeRO shards over `ranks` ranks."""

    name: str
    elements: int
    ranks: int
    persistent: int  # of these elements: in tensors so small that stage 3 keeps them whole
    tensors: int

    def share(self, *, is_sharded: bool) -> int:
        """Elements of one rank's share."""
        return -(-self.elements // self.ranks) if is_sharded else self.elements


@dataclass(frozen=True)
class Parameters:
    """Elements of each tensor. Experts are spread over expert-parallel groups; all else (dense) is in every replica."""

    dense: tuple[int, ...]
    experts: tuple[int, ...]  # all experts of a layer together; gate and up apart, as AutoEP holds them

    @property
    def total(self) -> int:
        return sum(self.dense) + sum(self.experts)

    def groups(self, layout: Layout) -> list[Group]:
        """Those that have any weight."""
        local = [n // layout.ep for n in self.experts]
        parts = [("dense", list(self.dense), layout.ranks), ("experts", local, layout.ranks // layout.ep)]
        return [
            Group(name, sum(sizes), ranks, sum(n for n in sizes if n < layout.persistence), len(sizes))
            for name, sizes, ranks in parts
            if sizes
        ]


def count(config: RunConfig) -> Parameters:
    """Everything learned: the network, and the weights of the tasks."""
    return _count(config.model_copy(update={"training": TrainingConfig()}).model_dump_json())


@lru_cache(maxsize=16)
def _count(config_json: str) -> Parameters:
    config = RunConfig.model_validate_json(config_json)
    with torch.device("meta"):
        objective = build_objective(config)
    dense: list[int] = []
    experts: list[int] = []
    for name, p in objective.named_parameters():
        if config.model.use_moe and ".moe.experts." in name:
            experts += [p.numel() // 2] * 2 if name.endswith("gate_up_proj") else [p.numel()]
        else:
            dense.append(p.numel())
    return Parameters(tuple(dense), tuple(experts))
