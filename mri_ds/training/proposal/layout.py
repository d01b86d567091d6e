"""The speed of a run: ranks, ZeRO stage, recomputation. A layout that is planned to fit, the plainest first.

Memory is planned as `mri-ds plan` does; on GPUs whose rates are known the fastest layout is searched for.
"""

from dataclasses import replace

from mri_ds.config import RunConfig
from mri_ds.training.plan.layout import Layout
from mri_ds.training.plan.suggestion import ROOM, Outcome, best_layout, best_micro_batch, fits, outcome
from mri_ds.training.proposal.choice import RANKS, RECOMPUTE, ZERO, Choice
from mri_ds.training.proposal.hardware import Hardware

CPU_ROOM = 0.6  # of free memory: others use it too, and loading takes some
ORDER = ((0, "none"), (0, "block"), (3, "none"), (3, "block"))  # the plainest first


def ranks_of(hardware: Hardware) -> Choice:
    if hardware.num_gpus:
        return Choice(RANKS, hardware.num_gpus, "one per GPU")
    nodes = hardware.num_numa_nodes
    why = "one per NUMA node, which computes on its own memory" if nodes > 1 else "one process uses all cores"
    return Choice(RANKS, nodes, why)


def layout_of(config: RunConfig, ranks: int, hardware: Hardware) -> tuple[list[Choice], Outcome | None]:
    """ZeRO stage and recomputation, and what they come to; (.., None) where nothing fits."""
    own = CPU_ROOM / ROOM * hardware.device.memory / ranks
    unit = hardware.device if hardware.num_gpus else replace(hardware.device, memory=own)
    batch = config.training.global_batch
    base = Layout(nodes=1, slots=ranks, precision="bf16", reduce_bucket=2**25)
    if hardware.has_known_rates:
        found = best_layout(config, base, unit, global_batch=batch)
        return (_told(found, hardware, ranks, "the fastest that fits"), found) if found is not None else ([], None)
    for zero, recompute in ORDER:
        if ranks == 1 and zero:
            continue  # nobody to share with
        one = best_micro_batch(config, replace(base, zero=zero, recompute=recompute), unit, global_batch=batch)
        if fits(one, unit):
            return _told(one, hardware, ranks, "the plainest that fits"), one
    return [], None


def needs(config: RunConfig, ranks: int, hardware: Hardware) -> Outcome:
    """What the thriftiest layout takes."""
    layout = Layout(nodes=1, slots=ranks, zero=3, recompute="block", precision="bf16", reduce_bucket=2**25)
    return outcome(config, layout, hardware.device)


def _told(one: Outcome, hardware: Hardware, ranks: int, rank_of_it: str) -> list[Choice]:
    layout, held = one.layout, one.memory.peak / 1e9
    of = f"of {hardware.device.memory / 1e9:.0f} GB"
    if layout.zero == 0:
        shared = f"every rank keeps all weights: {held:.2g} GB {of} planned" if ranks > 1 else "one rank has nobody to shard with"
    else:
        shared = f"ranks share what each would keep alone: {held:.2g} GB {of} planned"
    recomputed = (
        f"activations fit: {held:.2g} GB {of} planned" if layout.recompute == "none" else "activations would not fit else"
    )
    return [
        Choice(ZERO, layout.zero, f"{shared}; {rank_of_it}" if ranks > 1 else shared),
        Choice(RECOMPUTE, layout.recompute, recomputed),
    ]
