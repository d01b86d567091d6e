"""torch.compile on the encoder's blocks, from "compile": {"blocks": true} in the JSON.

A block compiles as one graph (tests/nn/test_compile.py): the experts' products are one operator in it, tables of positions are
constants. What an expert-parallel back end puts into a block is left as it is, and everything around it compiled: it waits for
numbers (how many rows go to which rank).
ZeRO-3 fetches weights by hooks on every module, each of which would end a graph: it is refused (ds_config/limits.py).
"""

from torch import nn

from mri_ds.nn.moe import MixtureOfExperts
from mri_ds.training.expert_parallel import moe_layers


def compile_blocks(objective: nn.Module) -> int:
    """Compiles, in place and when they first run, the blocks of the network's encoder; returns how many modules.

    Names of weights and state do not change. Call it after `deepspeed.initialize`, which may replace experts.
    """
    encoder = objective.net.encoder  # type: ignore[union-attr]
    foreign = {id(layer) for _, layer in moe_layers(encoder) if not isinstance(layer, MixtureOfExperts)}  # type: ignore[arg-type]
    count = 0
    for block in encoder.blocks:  # type: ignore[union-attr]
        has_foreign = any(id(module) in foreign for module in block.modules())
        for module in [block.attention] if has_foreign else [block]:
            module.compile()
            count += 1
    return count
