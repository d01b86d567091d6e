"""The command `parity`: is training the same however it is spread over ranks?"""

from pathlib import Path
from typing import Annotated, Any

import typer

from mri_ds.cli import console
from mri_ds.cli.choices import one_of, option_of
from mri_ds.errors import InputError

DTYPES = ["fp32", "bf16"]
ERRORS = ["gradient", "norm", "loss", "update"]


def parity(
    ranks: Annotated[list[int], typer.Option("--ranks", min=1, max=64, help="How many ranks; may be repeated.")] = [1, 2, 4],  # noqa: B006
    dtype: Annotated[list[str], option_of("--dtype", DTYPES, " May be repeated.")] = DTYPES,
    quick: Annotated[bool, typer.Option("--quick", help="One case of each layout instead of every combination.")] = False,
    keep: Annotated[
        Path | None, typer.Option("--keep", help="Folder in which cases are kept as they end; the same command goes on.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Compare gradients, gradient norm and ten losses of every layout with one plain PyTorch process.

    Layouts are ZeRO stages and expert-parallel sizes, each with and without recomputation and accumulation, with AdamW and SGD.
    Exit code 1 when one differs by more than rounding: 1e-5 in fp32, 2e-2 in bf16. "update" is how far the first update moved
    the weights; in bf16 the plain process computes each gradient at the weights that the ranks had. All 192 cases take long:
    with --keep a run that was cut short is taken up where it was, by the same code.

    Example: `mri-ds parity --ranks 2 --dtype fp32 --json`
    """
    for one in dtype:
        one_of(one, DTYPES, "--dtype")
    for count in ranks:
        if count & (count - 1) or count > 8:
            raise InputError(f"{count} ranks cannot share the 8 subjects of a batch", where="--ranks", fix="use 1, 2, 4 or 8")
    with console.stdout_for_result(), console.progress("parity", "cases") as report:
        from mri_ds.training.distributed import prepare_environment
        from mri_ds.training.parity.launch import parity as run_parity

        prepare_environment()
        result = run_parity(ranks, dtype, quick=quick, keep=keep, progress=report)
    if json:
        console.print_json(result)
    else:
        _print_table(result["rows"])
    if not result["passed"]:
        raise typer.Exit(1)


def _print_table(rows: list[dict[str, Any]]) -> None:
    headings = ["ranks", "ZeRO", "EP", "recompute", "accumulation", "optimizer", "dtype", *ERRORS, ""]
    told = []
    for row in rows:
        errors = [f"{error:.1e}" if (error := row[f"{name}_error"]) is not None else "-" for name in ERRORS]
        verdict = "" if row["passed"] else f"DIFFERS: {row.get('error') or row['worst']}"
        layout = [row["ranks"], row["zero"], row["ep"], "yes" if row["recompute"] else "no", row["accumulation"]]
        told.append([*map(str, layout), row["optimizer"], row["dtype"], *errors, verdict])
    console.print_table(headings, told, left=0)
    failed = sum(not row["passed"] for row in rows)
    print(f"{len(rows) - failed} of {len(rows)} cases equal the plain process")
