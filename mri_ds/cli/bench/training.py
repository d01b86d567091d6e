"""`mri-ds bench scaling`: ranks beside one plain process."""

from typing import Annotated, Any

import typer

from mri_ds.cli import console
from mri_ds.cli.choices import one_of, option_of
from mri_ds.config import SCALES
from mri_ds.errors import InputError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def scaling(
    scale: Annotated[str, option_of("--scale", SCALES)] = "small",
    global_batch: Annotated[int, typer.Option("--global-batch", min=2, help="Subjects of an update; an even number.")] = 4,
    patch: Annotated[int, typer.Option("--patch", min=16, max=256, help="Voxels along each axis of a subject.")] = 64,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Updates to a turn.")] = 5,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Turns of all; the median counts.")] = 5,
    ranks: Annotated[str, typer.Option("--ranks", help="Numbers of ranks for weak scaling; the first must be 1.")] = "1,2,4",
    part: Annotated[str, typer.Option("--part", help="targets, weak, or both.")] = "both",
    json: Json = False,
) -> None:
    """ZeRO-3 with expert parallelism on two ranks, beside one plain PyTorch process on the same cores; and weak scaling.

    Run it on a machine that does nothing else. Exit code 1 when a target is missed.

    Example: `mri-ds bench scaling --scale small --json`
    """
    weak = _ranks(ranks)
    one_of(part, ("targets", "weak", "both"), "--part")
    one_of(scale, SCALES, "--scale")
    if global_batch % 2:
        raise InputError(f"--global-batch {global_batch} cannot be divided over 2 ranks", fix="give an even number")
    from mri_ds.bench.scaling import bench_scaling

    with console.stdout_for_result(), console.progress("bench scaling") as report:
        result = bench_scaling(
            scale=scale,
            global_batch=global_batch,
            patch=patch,
            steps=steps,
            rounds=rounds,
            weak=weak,
            parts=("targets", "weak") if part == "both" else (part,),
            progress=report,
        )
    if json:
        console.print_json(result)
    else:
        _print_scaling(result)
    if not all(result["passed"].values()):
        raise typer.Exit(1)


def _ranks(text: str) -> list[int]:
    try:
        ranks = [int(part) for part in text.split(",")]
    except ValueError:
        ranks = []
    if not ranks or ranks[0] != 1 or min(ranks) < 1 or len(set(ranks)) < len(ranks):
        raise InputError(f"--ranks {text!r} is no list of numbers of ranks that begins with 1", fix="write it as 1,2,4")
    return ranks


def _print_scaling(result: dict[str, Any]) -> None:
    names = {"plain": "plain PyTorch, 2 threads", "zero3": "2 ranks, ZeRO-3, EP 2", "zero0": "2 ranks, ZeRO-0, EP 2"}
    for name, row in result.get("teams", {}).items():
        print(f"{names[name]:<28}{row['step_s']:>9.3f} s/step{row['samples_per_s']:>9.2f} subjects/s")
    for name, value in result.get("found", {}).items():
        print(f"{name:<28}{value:>9.3f} (target {result['targets'][name]}: {'met' if result['passed'][name] else 'missed'})")
    for row in result.get("weak", []):
        print(
            f"{row['ranks']} rank(s), one subject each{row['efficiency']:>11.2f} of even, the machine allows {row['machine']:.2f}"
        )
