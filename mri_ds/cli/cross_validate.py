"""The commands `cross-validate` (K trainings, every subject predicted unseen) and `compare` (two runs on the same subjects)."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mri_ds.cli import console
from mri_ds.errors import InputError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
TRAIN_OPTIONS = {"allow_extra_args": True, "ignore_unknown_options": True}  # of the command's context: what is left is train's


def cross_validate(
    context: typer.Context,
    data: Annotated[Path, typer.Option("--data", help="Folder of shards; how they were split before does not matter.")] = Path(
        "shards"
    ),
    out: Annotated[Path, typer.Option("--out", help="Folder for the folds' runs and the pooled figures.")] = Path(
        "runs/cross-validation"
    ),
    folds: Annotated[int, typer.Option("--folds", min=2, help="How many times to train.")] = 5,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of who is held out when.")] = 0,
    only: Annotated[
        list[int] | None, typer.Option("--only", metavar="K", help="This fold alone; may be repeated. Folds count from 0.")
    ] = None,
    json: Json = False,
) -> None:
    """Train K times, each time with other subjects held out, and pool the predictions of subjects that no training saw.

    All options of `mri-ds train` but --data, --run, --resume, --resolve-only and --json may follow: each fold is trained with
    them. Folds are stratified, and all scans of a patient are in one. The same command again goes on where it was.

    Example: `mri-ds cross-validate --folds 5 --data shards --out runs/cv --scale small --ranks 2 --set training.steps=400`
    """
    from mri_ds.evaluation.cross_validate import Left
    from mri_ds.evaluation.cross_validate import cross_validate as run_all

    def say(text: str) -> None:
        typer.echo(f"cross-validate: {text}", err=True)

    with console.stdout_for_result(), console.progress("read subjects") as report:
        try:
            result = run_all(data, out, context.args, num_folds=folds, seed=seed, only=only or [], say=say, progress=report)
        except Left as left:
            say(str(left))
            raise typer.Exit(left.exit_code) from None
    if json:
        console.print_json(result)
        return
    from mri_ds.evaluation.table import print_result

    print_result(result, console.stdout())
    missing = folds - len(result["folds"])
    print(f"{len(result['folds'])} of {folds} folds{f'; {missing} are missing' if missing else ''}: {out / 'evaluation.json'}")


def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="Folder that was evaluated, or the JSON of `evaluate`.")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="The same subjects, predicted by another run.")],
    alpha: Annotated[float, typer.Option("--alpha", help="Chance of calling anything different where nothing is.")] = 0.05,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the permutations and the bootstrap.")] = 0,
    json: Json = False,
) -> None:
    """Is one run better than another on the same subjects? Paired tests, corrected for their number, and effect sizes.

    Example: `mri-ds compare runs/cv-small runs/cv-base --json`
    """
    if not 0 < alpha < 1:
        raise InputError(f"{alpha} is no chance", where="--alpha", fix="give one between 0 and 1, as 0.05")
    from mri_ds.evaluation.compare import compare_runs

    with console.stdout_for_result():
        result = compare_runs(run_a, run_b, alpha=alpha, seed=seed)
    if json:
        console.print_json(result)
    else:
        _print_comparison(result)


def _print_comparison(result: dict[str, Any]) -> None:
    from rich.table import Table

    from mri_ds.evaluation.table import told_number

    title = f"{told_number(result)}; a positive difference favours B; p by Holm over all rows"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("figure")
    for heading in ("A", "B", "difference [95 %]", "effect", "p", "better"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in result["comparisons"]:
        low, high = row["interval"]
        difference = f"{row['difference']:+.3f} [{low:+.2f}, {high:+.2f}]"
        numbers = [f"{row['a']:.3f}", f"{row['b']:.3f}", difference, f"{row['effect']:+.2f}", f"{row['p_holm']:.2g}"]
        table.add_row(" ".join(filter(None, (row["task"], row["class"], row["figure"]))), *numbers, row["better"] or "-")
    console.stdout().print(table)
    for note in result["notes"]:
        print(note)
