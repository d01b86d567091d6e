"""The command `convert`: a sharded checkpoint becomes weights for a single device, or DeepSpeed's universal folder."""

from pathlib import Path
from typing import Annotated

import typer

from mri_ds.cli import console
from mri_ds.cli.choices import one_of, option_of

FORMATS = ["safetensors", "fp32", "universal"]


def convert(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder that `mri-ds train` wrote, finished or not.")],
    to: Annotated[str, option_of("--to", FORMATS)] = "safetensors",
    step: Annotated[int | None, typer.Option("--step", help="Which checkpoint. Default: the newest complete one.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Default: RUN/model-stepNNNNNN.safetensors or the like.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Make single-device weights of a checkpoint of any number of ranks, compared bit for bit with what was saved.

    `safetensors`: float32 under the network's own names. `fp32`: the same for torch.load. `universal`: DeepSpeed's folder.

    Example: `mri-ds convert runs/first --to safetensors --step 100`
    """
    one_of(to, FORMATS, "--to", "format")
    with console.stdout_for_result():
        from mri_ds.training.checkpoint.convert import convert_run

        result = convert_run(run, to, step=step, out=out)
    if json:
        console.print_json(result)
    else:
        print(f"{result['parameters']:,} parameters of step {result['step']} in {result['out']}")
