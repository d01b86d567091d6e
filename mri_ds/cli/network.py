"""Commands about the network itself: `info` counts parameters, arithmetic and memory without allocating any of it."""

from typing import Annotated

import typer

from mri_ds.cli import console
from mri_ds.cli.choices import one_of, option_of
from mri_ds.config import SCALES


def info(
    scale: Annotated[str, option_of("--scale", SCALES)] = "small",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Describe a scale: parameters in total and active per token, and what a volume of 128^3 voxels costs.

    flops_volume is one forward pass; training_bytes the peak of one device in bfloat16, one volume at a time, blocks recomputed.

    Example: `mri-ds info --scale xl --json`
    """
    one_of(scale, SCALES, "--scale")
    from mri_ds.mri_network import describe
    from mri_ds.training.plan.cost import cost

    with console.stdout_for_result():
        facts = describe(scale)
        facts |= cost(scale)
    if json:
        console.print_json(facts)
        return
    rows = [[name, f"{value:,}" if isinstance(value, int) else str(value)] for name, value in facts.items()]
    console.print_table([], rows, left=2)
