"""Memory of one rank, line by line, in bytes: what ZeRO keeps of weights, gradients and moments, and what a micro-batch adds.

P parameters; b bytes of one (2 in bf16 and fp16); n ranks that ZeRO shards over: all of them for dense weights, those that hold
the same experts for experts. Per parameter, after Rajbhandari et al. 2020 (ZeRO), section 3.1: b weights, b gradients, 4 master
copy, 8 Adam's moments; stage 1 divides the last two by n, stage 2 gradients too, stage 3 all of it. What DeepSpeed 0.19 holds
beside that was read off its live tensors:
- stage 3 keeps small tensors whole (persistence threshold), and after a forward pass all those that it will need again within
  1e9 elements (stage3_max_reuse_distance): below a third of that, sharded weights are whole during a micro-batch;
- a bucket of gradients, and its copy while it is sent;
- float32 gradients of the own shard during the update; on a CPU stage 3 keeps their memory, and in float32 needs none
  (gradient_passes.py);
- at the start the whole network in float32 in the host's memory, on every rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mri_ds.training.gradient_passes import KEPT
from mri_ds.training.plan.layout import Layout
from mri_ds.training.plan.parameters import Group, Parameters
from mri_ds.training.plan.trace import Line, Trace

MASTER, MOMENTS, PRECISE = 4, 8, 4  # bytes of a parameter


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank."""

    weights: int  # kept between steps: shards, and what is persistent
    gathered: int  # whole weights in addition, during a micro-batch
    gradients: int
    optimizer: int  # master copy and moments
    bucket: int  # of gradients on their way
    sending: int  # its copy in the order of the ranks
    update: int  # float32 gradients during the update
    activations: int
    experts: int  # of weights, gradients and optimizer: the experts' part
    runtime: int  # of the device's libraries
    host_start: int  # in the host's memory, while the network is built; of each rank
    host: int  # what is offloaded to the host's memory

    @property
    def peak(self) -> int:
        kept = self.weights + self.gradients + self.optimizer + self.bucket + self.runtime
        return kept + max(self.gathered + self.activations + self.sending, self.update)


def memory(parameters: Parameters, layout: Layout, trace: Trace | Line, *, runtime: int = 0, is_cpu: bool = False) -> Memory:
    """`trace` is of this layout's micro-batch, precision and recomputation.

    is_cpu: buckets count as far as they are written, because the system gives memory only then.
    """
    b, zero, groups = layout.itemsize, layout.zero, parameters.groups(layout)
    experts = next((g for g in groups if g.name == "experts"), None)
    has_master = layout.precision != "fp32" or zero > 0  # DeepSpeed keeps a copy of float32 weights too, but for stage 0
    of_state = MOMENTS + (MASTER if has_master else 0)

    def share(stage: int) -> int:
        return sum(g.share(is_sharded=zero >= stage) for g in groups)

    elements = sum(g.elements for g in groups)
    split = [g for g in groups if zero == 3 and g.ranks > 1]
    persistent = sum(g.persistent for g in split)
    weights, gradients, optimizer = b * share(3), b * share(2), of_state * share(1)
    update = PRECISE * share(1) if has_master else 0
    if is_cpu and zero == 3 and not layout.offload_optimizer:
        shares = [g.share(is_sharded=True) for g in groups]
        update = PRECISE * sum(n for n in shares if n > KEPT)
        gradients += PRECISE * sum(n for n in shares if n <= KEPT) if b < PRECISE else 0
    bucket = 0 if zero == 0 else b * (min(layout.reduce_bucket, elements) if is_cpu else layout.reduce_bucket)
    return Memory(
        weights=b * persistent + (0 if layout.offload_params else weights),
        gathered=b * max(0, live(split, layout) - persistent),
        gradients=0 if layout.offload_optimizer else gradients,
        optimizer=0 if layout.offload_optimizer else optimizer,
        bucket=bucket,
        sending=b * min(layout.reduce_bucket, elements) if zero else 0,
        update=0 if layout.offload_optimizer else update,
        activations=trace.peak_bytes,
        experts=_of_experts(experts, layout, of_state) if experts is not None else 0,
        runtime=runtime,
        host_start=4 * parameters.total,
        host=(gradients + optimizer + update if layout.offload_optimizer else 0) + (weights if layout.offload_params else 0),
    )


def live(groups: Sequence[Group], layout: Layout) -> int:
    """Whole weights that stage 3 holds at most: those used again within `reuse_distance` elements, through all passes."""
    passes = 3 if layout.recomputes_experts else 2
    return min(sum(g.elements for g in groups), layout.reuse_distance // passes)


def _of_experts(experts: Group, layout: Layout, of_state: int) -> int:
    weights, gradients, optimizer = (experts.share(is_sharded=layout.zero >= stage) for stage in (3, 2, 1))
    return layout.itemsize * (weights + gradients) + of_state * optimizer
