"""The command `evaluate`: a trained run's figures on held-out subjects."""

from pathlib import Path
from typing import Annotated

import typer

from mri_ds.cli import console
from mri_ds.errors import InputError

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
    output: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help="Folder for tables as files. Default: RUN/evaluation.")
    ] = None,
    tolerance_mm: Annotated[
        float, typer.Option("--tolerance-mm", min=0, help="How far apart surfaces may be and still count in surface Dice.")
    ] = 1.0,
    reader: Annotated[
        list[str] | None,
        typer.Option("--reader", metavar="TASK=OTHER", help="OTHER in the shards is one more person's labels of TASK."),
    ] = None,
    keep_small_parts: KeepSmallParts = False,
    json: Json = False,
) -> None:
    """Score a run on subjects it never saw, each figure with its 95 % interval beside that of a constant predictor.

    Writes evaluation.json and tables (subjects.csv, tasks.csv, classes.csv, strata.csv, agreement.csv) into --output, for another
    split than `test` by default into RUN/evaluation-SPLIT.

    Example: `mri-ds evaluate --checkpoint runs/first --data shards --reader tissue=tissue_b --picture case.png`
    """
    readers = _readers(reader or [])
    if picture is not None:
        console.output_folder(picture.parent)
    with console.stdout_for_result():
        from mri_ds.evaluation import evaluate as evaluation
        from mri_ds.evaluation.files import write_files
        from mri_ds.inference.run import load_run

        run = load_run(checkpoint)
        with console.progress("evaluate") as report:
            result = evaluation.evaluate(
                run,
                data,
                split=split,
                keep_small_parts=keep_small_parts,
                tolerance_mm=tolerance_mm,
                readers=readers,
                progress=report,
            )
        files = write_files(result, console.output_folder(output or checkpoint / _folder_of(split)))
        drawn = evaluation.draw_first_case(run, data, split, picture) if picture is not None else None
    if json:
        console.print_json({**result, "picture": str(drawn) if drawn else None, "files": files})
        return
    from mri_ds.evaluation.table import print_result

    print_result(result, console.stdout())
    print(f"Tables: {', '.join(files.values())}")
    if drawn:
        print(f"Picture: {drawn}")


def _readers(given: list[str]) -> dict[str, list[str]]:
    """["tissue=tissue_b"] -> {"tissue": ["tissue_b"]}."""
    readers: dict[str, list[str]] = {}
    for text in given:
        task, is_pair, other = text.partition("=")
        if not (task and is_pair and other):
            raise InputError(f"--reader {text!r} names no two tasks", fix="write it as --reader tissue=tissue_b")
        readers.setdefault(task, []).append(other)
    return readers


def _folder_of(split: str) -> str:
    """Held-out results are not written over by those of training subjects."""
    return "evaluation" if split == "test" else f"evaluation-{split}"
