"""Seconds of one step: a roofline over the traced operators, and what waits on messages.

An operator takes the longer of its arithmetic and its bytes (Williams et al. 2009), and not less than its launch from Python.
Messages take their rounds' latency and their bytes over the slower link that they cross. DeepSpeed waits for gradients unless
`overlap_comm` is set, and fetches weights ahead by one bucket: gathers hide behind arithmetic as far as that reaches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mri_ds.training.devices import Device
from mri_ds.training.plan.communication import Traffic
from mri_ds.training.plan.layout import Layout
from mri_ds.training.plan.memory import Memory
from mri_ds.training.plan.trace import Line, Trace

HIDDEN = 0.5  # of the time of what is prefetched or overlapped; the other half finds nothing to hide behind


@dataclass(frozen=True)
class Time:
    """Seconds of one optimiser step."""

    compute: float  # all its micro-batches
    launches: float  # of compute: operators that wait for Python
    update: float
    communication: float  # what compute does not hide
    efficiency: float  # compute and update over all: what the same rank would reach alone
    flops_share: float  # achieved floating-point operations, recomputation included, over the device's peak

    @property
    def total(self) -> float:
        return self.compute + self.update + self.communication


def step_time(trace: Trace | Line, memory: Memory, traffic: Sequence[Traffic], layout: Layout, device: Device) -> Time:
    rate, bandwidth = device.flops(layout.precision) * device.share, device.bandwidth * device.share
    once, waiting = trace.seconds(flops_per_s=rate, bytes_per_s=bandwidth, launch_s=device.launch_s)
    compute = layout.accumulation * once
    update = 2 * (memory.weights + memory.gradients + memory.optimizer + memory.update) / bandwidth
    waits = sum(seconds_of(one, device) * (1 - HIDDEN if _is_hidden(one, layout) else 1) for one in traffic)
    total = compute + update + waits
    return Time(
        compute=compute,
        launches=layout.accumulation * waiting,
        update=update,
        communication=waits,
        efficiency=(compute + update) / total,
        flops_share=layout.accumulation * trace.flops / (total * device.flops(layout.precision)),
    )


def seconds_of(one: Traffic, device: Device) -> float:
    if one.group == 1:
        return 0.0
    latency = device.network_latency_s if one.crosses_nodes else device.latency_s
    link = device.network if one.crosses_nodes else device.link
    return one.rounds * latency + one.bytes_sent / (link * device.share)


def _is_hidden(one: Traffic, layout: Layout) -> bool:
    return one.what.endswith("large weights") or (one.what.endswith("gradients") and layout.overlap)
