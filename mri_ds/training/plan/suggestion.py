"""Which micro-batch fits, and which layout is fastest: every candidate is planned, the best is taken.

Candidates: micro-batches that divide what a rank has of the global batch (powers of two where no global batch is given), ZeRO
stages, expert-parallel sizes, recomputation on and off. Those that need more than ROOM of the device's memory are left out.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from mri_ds.config import RunConfig
from mri_ds.training.devices import Device
from mri_ds.training.plan.communication import Traffic, communication
from mri_ds.training.plan.layout import Layout
from mri_ds.training.plan.memory import Memory, memory
from mri_ds.training.plan.parameters import count
from mri_ds.training.plan.time import Time, step_time
from mri_ds.training.plan.trace import at_micro_batch

ROOM = 0.9  # of the device's memory: the rest is lost to fragmentation, or to a batch whose experts are unevenly loaded
LARGEST = 64


@dataclass(frozen=True)
class Outcome:
    """One layout and what it comes to."""

    layout: Layout
    memory: Memory
    traffic: list[Traffic]
    time: Time

    @property
    def samples_per_s(self) -> float:
        return self.layout.ranks * self.layout.micro_batch * self.layout.accumulation / self.time.total


def outcome(config: RunConfig, layout: Layout, device: Device) -> Outcome:
    parameters = count(config)
    traced = at_micro_batch(layout.micro_batch, config, precision=layout.precision, recompute=layout.recompute)
    held = memory(parameters, layout, traced, runtime=int(device.runtime), is_cpu=device.name == "cpu")
    model = config.model
    traffic = communication(
        parameters,
        layout,
        tokens=layout.micro_batch * num_tokens(config),
        width=model.embed_dim,
        layers=model.num_layers if model.use_moe else 0,
        top_k=model.top_k,
    )
    return Outcome(layout, held, traffic, step_time(traced, held, traffic, layout, device))


def num_tokens(config: RunConfig) -> int:
    assert config.data.patch != "auto"
    return math.prod(-(-n // s) for n, s in zip(config.data.patch, config.model.token_stride, strict=True))


def fits(one: Outcome, device: Device) -> bool:
    return one.memory.peak <= ROOM * device.memory


def micro_batches(ranks: int, global_batch: int | None) -> list[int]:
    """Largest first."""
    if global_batch is None:
        return [2**i for i in range(LARGEST.bit_length() - 1, -1, -1)]
    own = global_batch // ranks
    return [n for n in range(own, 0, -1) if own % n == 0]


def best_micro_batch(config: RunConfig, layout: Layout, device: Device, *, global_batch: int | None) -> Outcome:
    """The largest micro-batch of this layout that fits; that of one where none does."""
    for micro in micro_batches(layout.ranks, global_batch):
        one = outcome(config, _with(layout, micro, global_batch), device)
        if fits(one, device):
            break
    return one


def best_layout(config: RunConfig, layout: Layout, device: Device, *, global_batch: int | None) -> Outcome | None:
    """The fastest per sample of all that fit; among equals (within 2 %) the one that needs least memory. None fits: None."""
    candidates = [best_micro_batch(config, other, device, global_batch=global_batch) for other in _layouts(config, layout)]
    able = [one for one in candidates if fits(one, device)]
    if not able:
        return None
    fastest = max(one.samples_per_s for one in able)
    return min((one for one in able if one.samples_per_s >= 0.98 * fastest), key=lambda one: one.memory.peak)


def _layouts(config: RunConfig, layout: Layout) -> Iterator[Layout]:
    most = math.gcd(config.model.num_experts, layout.ranks) if config.model.use_moe else 1
    for zero in (0, 1, 2, 3):
        for ep in (n for n in range(1, most + 1) if most % n == 0):
            for recompute in ("none", "block"):
                yield replace(layout, zero=zero, ep=ep, recompute=recompute)


def _with(layout: Layout, micro: int, global_batch: int | None) -> Layout:
    accumulation = 1 if global_batch is None else max(1, global_batch // (layout.ranks * micro))
    return replace(layout, micro_batch=micro, accumulation=accumulation)
