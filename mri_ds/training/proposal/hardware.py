"""What this machine has to train on."""

import os
from dataclasses import dataclass, replace

import torch

from mri_ds.training import local_ranks
from mri_ds.training.devices import TABLE, Device, known_as
from mri_ds.training.room import free_bytes


@dataclass(frozen=True)
class Hardware:
    """`device.memory` is of one GPU, or of the whole host; a CPU's rates are those of no machine: nothing is timed here."""

    name: str  # for people
    device: Device
    num_gpus: int
    num_numa_nodes: int
    has_known_rates: bool

    def describe(self) -> dict[str, object]:
        shown = {"name": self.name, "gpus": self.num_gpus, "memory_bytes": int(self.device.memory)}
        return shown | {"cores": len(os.sched_getaffinity(0))}


def find_hardware() -> Hardware:
    """GPUs where torch sees some, else this host's cores and the memory that is free of it."""
    gpus, nodes = local_ranks.num_gpus(), max(1, len(local_ranks.numa_nodes()))
    if gpus:
        driver = torch.cuda.get_device_name(0)
        known = known_as(driver)
        memory = float(torch.cuda.get_device_properties(0).total_memory)
        device = replace(known or TABLE["l40s"], memory=memory)
        return Hardware(f"{gpus} x {driver}, {memory / 1e9:.0f} GB", device, gpus, nodes, known is not None)
    memory = float(free_bytes())
    device = replace(TABLE["v100"], name="cpu", memory=memory, bf16=TABLE["v100"].fp32, runtime=20e6)
    cores = len(os.sched_getaffinity(0))
    return Hardware(f"{cores} CPU cores, {memory / 1e9:.0f} GB of memory free", device, 0, nodes, False)
