"""Parameters that enter and leave an optimiser between two steps."""

from collections.abc import Sequence

import torch
from torch import nn


def exchange(
    optimizer: torch.optim.Optimizer,
    *,
    leaving: Sequence[nn.Parameter] = (),
    entering: Sequence[nn.Parameter] = (),
    beside: Sequence[nn.Parameter] = (),
) -> None:
    """`entering` join the group of the first of `leaving` and `beside` that has one; `leaving` go, with their moments.

    For torch.optim's optimisers; DeepSpeed's flat ones are built anew. Raises ValueError where the optimiser knows none of them.
    """
    known = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    homes = [known[id(p)] for p in [*leaving, *beside] if id(p) in known]
    if entering and not homes:
        raise ValueError("the optimiser holds no parameter that the new ones could stand beside: give it one of this module's")
    gone = {id(p) for p in leaving}
    if entering:
        homes[0]["params"].extend(p for p in entering if id(p) not in known)
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in gone]
    for p in leaving:
        optimizer.state.pop(p, None)
