"""`mri-ds bench`: measurements beside other people's code, one command each."""

from typing import Annotated, Any

import typer

from mri_ds.cli import console

app = typer.Typer(help="Measure parts of the data path beside other people's code.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


@app.command("augment")
def augment(
    size: Annotated[int, typer.Option("--size", min=16, max=256, help="Voxels along each axis of the result.")] = 96,
    channels: Annotated[int, typer.Option("--channels", min=1, max=16, help="Channels of the image.")] = 1,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Samples that count, after one that warms up.")] = 5,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of volume and dice.")] = 0,
    json: Json = False,
) -> None:
    """Time per varied sample on one thread, beside MONAI's lazy Compose of the same list.

    Example: `mri-ds bench augment --size 96 --json`
    """
    from mri_ds.bench.augment import bench_augment

    with console.stdout_for_result(), console.progress("bench augment") as report:
        result = bench_augment(size=size, channels=channels, repeats=repeats, seed=seed, progress=report)
    if json:
        console.print_json(result)
        return
    print(f"{'CPU ms per sample':<26}{'ours':>9}{'MONAI':>10}{'ratio':>8}")
    for name, row in [("all that both have", result["together"]), ("at the usual chances", result["configured"])]:
        _print_row(name, row)
    for name, row in result["apart"].items():
        _print_row(f"  {name}", row)


def _print_row(name: str, row: dict[str, Any]) -> None:
    monai = f"{row['monai']['cpu_ms']:>10.1f}{row['cpu_ratio']:>7.1f}x" if "monai" in row else f"{'-':>10}{'-':>8}"
    print(f"{name:<26}{row['ours']['cpu_ms']:>9.1f}{monai}")
