"""What ranks say to one another in one step: messages and bytes by collective, and over which link.

A message of S bytes (the whole, not a rank's part) among n ranks costs each of them S (n - 1) / n sent bytes as an all-gather or
a reduce-scatter, twice that as an all-reduce, and S (n - 1) / n as an all-to-all, S then being what one rank has to give.
Source: Thakur et al. 2005, sections 4 and 5 (bandwidth terms of ring algorithms).
"""

import math
from dataclasses import dataclass

from mri_ds.training.plan.layout import Layout
from mri_ds.training.plan.memory import live
from mri_ds.training.plan.parameters import Group, Parameters


@dataclass(frozen=True)
class Traffic:
    """One kind of collective of one step."""

    what: str
    collective: str
    group: int  # ranks that take part
    crosses_nodes: bool
    messages: int
    bytes_message: int  # of all messages of the step: the whole of what is gathered or reduced, or what this rank gives away
    bytes_sent: int  # by each rank

    @property
    def rounds(self) -> int:
        return self.messages * math.ceil(math.log2(self.group)) if self.group > 1 else 0


def communication(parameters: Parameters, layout: Layout, *, tokens: int, width: int, layers: int, top_k: int) -> list[Traffic]:
    """Of one optimiser step. tokens: of one micro-batch; layers: those with experts, 0 for none."""
    out = [one for group in parameters.groups(layout) if group.ranks > 1 for one in _of_weights(group, layout)]
    if layout.ep > 1 and layers:
        # dispatch and combine, in the forward pass, in its recomputation and in the backward pass
        messages = 2 * layers * (3 if layout.recomputes_experts else 2) * layout.accumulation
        size = messages * tokens * top_k * width * layout.itemsize
        crosses = layout.ep > layout.slots
        out.append(Traffic("tokens", "all_to_all", layout.ep, crosses, messages, size, size * (layout.ep - 1) // layout.ep))
    return out


def _of_weights(group: Group, layout: Layout) -> list[Traffic]:
    """Ranks that hold the same share stand on different nodes wherever there are several."""

    def say(what: str, collective: str, messages: int, elements: int) -> Traffic:
        size = layout.itemsize * elements
        sent = (2 if collective == "all_reduce" else 1) * size * (group.ranks - 1) // group.ranks
        return Traffic(f"{group.name} {what}", collective, group.ranks, layout.nodes > 1, messages, size, sent)

    buckets, times = math.ceil(group.elements / layout.reduce_bucket), layout.accumulation
    if layout.zero == 0:
        return [say("gradients", "all_reduce", buckets, group.elements)]
    if layout.zero < 3:
        often = times if layout.zero == 2 else 1
        gradients = say("gradients", "reduce_scatter", often * buckets, often * group.elements)
        return [gradients, say("weights", "all_gather", buckets, group.elements)]
    large = group.elements - group.persistent
    again = large - min(large, live([group], layout))  # let go after the forward pass
    out = [say("gradients", "reduce_scatter", times * buckets, times * group.elements)]
    if group.persistent:
        out.append(say("small weights", "all_gather", 1, group.persistent))
    if large:
        out.append(say("large weights", "all_gather", times * max(1, group.tensors // 2), times * (large + again)))
    return out
