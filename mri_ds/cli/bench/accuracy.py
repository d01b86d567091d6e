"""`mri-ds bench accuracy`: MONAI's networks on the folds of a cross-validation."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mri_ds.cli import console

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def accuracy(
    cross_validation: Annotated[
        Path, typer.Option("--cross-validation", metavar="CV", help="Folder that `mri-ds cross-validate` wrote.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for what the contenders' folds give.")],
    contenders: Annotated[str, typer.Option("--contenders", help="Of BasicUNet and SwinUNETR.")] = "BasicUNet,SwinUNETR",
    seconds: Annotated[
        float | None, typer.Option("--seconds", min=1, help="Training of one fold. Default: as long as CV's own took.")
    ] = None,
    micro_batch: Annotated[int, typer.Option("--micro-batch", min=1, help="Subjects at a time, at most: bounds memory.")] = 2,
    json: Json = False,
) -> None:
    """Dice and HD95 of MONAI's networks beside ours: same folds, same time, same shards, augmentation, windows and metrics.

    Example: `mri-ds bench accuracy --cross-validation runs/cv --out runs/cv-peers --json`
    """
    from mri_ds.bench.accuracy import bench_accuracy

    def say(text: str) -> None:
        typer.echo(f"bench accuracy: {text}", err=True)

    names = [name for name in contenders.split(",") if name]
    with console.stdout_for_result():
        result = bench_accuracy(cross_validation, out, contenders=names, seconds=seconds, micro_batch=micro_batch, say=say)
    if json:
        console.print_json(result)
    else:
        _print_accuracy(result)


def _print_accuracy(result: dict[str, Any]) -> None:
    print(f"{'out of fold':<34}{'Dice':>8}{'HD95 mm':>9}{'updates':>9}{'s/fold':>8}{'parameters':>12}")
    for name, row in result["contenders"].items():
        cost = f"{row['steps']:>9.0f}{row['train_s']:>8.0f}{row['parameters']:>12,}"
        for task, figures in row["tasks"].items():
            for label, dice in figures["dice"].items():
                shown = "".join(
                    f"{'-':>{w}}" if v is None else f"{v:>{w}.{d}f}"
                    for v, w, d in ((dice, 8, 3), (figures["hd95_mm"][label], 9, 2))
                )
                print(f"{f'{name}: {task} {label}':<34}{shown}{cost}")
                cost = ""
    for name, told in result["comparisons"].items():
        better = [f"{row['figure']} {row['class']}".strip() for row in told["comparisons"] if row["better"] == "B"]
        worse = [f"{row['figure']} {row['class']}".strip() for row in told["comparisons"] if row["better"] == "A"]
        print(f"beside {name}: better in {', '.join(better) or 'nothing'}; worse in {', '.join(worse) or 'nothing'} (Holm, 5 %)")
