"""The command `evaluate`: a trained run's figures on held-out subjects."""

from pathlib import Path
from typing import Annotated

import typer

from mri_ds.cli import console

Checkpoint = Annotated[Path, typer.Option("--checkpoint", metavar="RUN", help="Run folder that `mri-ds train` wrote.")]
KeepSmallParts = Annotated[
    bool, typer.Option("--keep-small-parts", help="Leave parts in label maps that are far smaller than any in training.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def evaluate(
    checkpoint: Checkpoint,
    data: Annotated[Path, typer.Option("--data", help="Folder of shards.")] = Path("shards"),
    split: Annotated[str, typer.Option("--split", help="`test` or `train`.")] = "test",
    picture: Annotated[Path | None, typer.Option("--picture", metavar="PNG", help="Draw a subject of the split here.")] = None,
    keep_small_parts: KeepSmallParts = False,
    json: Json = False,
) -> None:
    """Score a run on subjects it never saw, each figure beside that of a constant predictor.

    Example: `mri-ds evaluate --checkpoint runs/first --data shards --picture case.png`
    """
    if picture is not None:
        console.output_folder(picture.parent)
    with console.stdout_for_result():
        from mri_ds.evaluation import evaluate as evaluation
        from mri_ds.inference.run import load_run

        run = load_run(checkpoint)
        with console.progress("evaluate") as report:
            result = evaluation.evaluate(run, data, split=split, keep_small_parts=keep_small_parts, progress=report)
        drawn = evaluation.draw_first_case(run, data, split, picture) if picture is not None else None
    if json:
        console.print_json({**result, "picture": str(drawn) if drawn else None})
        return
    from mri_ds.evaluation.table import print_result

    print_result(result)
    if drawn:
        print(f"Picture: {drawn}")
