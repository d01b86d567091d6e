"""Commands about the network itself: `info` counts its parameters without allocating them."""

from typing import Annotated

import typer

from mri_ds.cli import console
from mri_ds.config import SCALES


def info(
    scale: Annotated[str, typer.Option("--scale", help=f"One of {', '.join(SCALES)}.")] = "small",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Describe a scale: parameters in total and active per token, width, layers, experts.

    Example: `mri-ds info --scale xl --json`
    """
    from mri_ds.mri_network import describe

    with console.stdout_for_result():
        facts = describe(scale)
    if json:
        console.print_json(facts)
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {f'{value:,}' if isinstance(value, int) else value}")
