"""`mri-ds bench metrics|inference`: prediction and metrics beside MONAI."""

from pathlib import Path
from typing import Annotated

import typer

from mri_ds.cli import console

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def metrics(
    source: Annotated[
        Path | None, typer.Option("--data", help="Label maps: a folder of NIfTI files, or of a dataset. Default: synthetic.")
    ] = None,
    masks: Annotated[int, typer.Option("--masks", min=1, help="How many pairs of masks.")] = 20,
    size: Annotated[int, typer.Option("--size", min=16, max=256, help="Voxels along each axis of synthetic heads.")] = 64,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Turns of all contenders; the median counts.")] = 3,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of heads and predictions.")] = 0,
    json: Json = False,
) -> None:
    """Time of HD95, average surface distance and surface Dice of one pair of masks, beside MONAI's three calls.

    Exit code 1 when ours take more than a third of MONAI's CPU time.

    Example: `mri-ds bench metrics --data Task04_Hippocampus --json`
    """
    from mri_ds.bench.metrics import bench_metrics

    with console.stdout_for_result(), console.progress("bench metrics") as report:
        result = bench_metrics(source, num_masks=masks, size=size, repeats=repeats, seed=seed, progress=report)
    if json:
        console.print_json(result)
    else:
        print(f"{'CPU ms per pair of masks':<40}{'ours':>9}{'MONAI':>10}{'ratio':>8}")
        for kind, name in (("figures", "HD95, ASSD, surface Dice"), ("with_area", "with surface Dice by area instead")):
            row = result[kind]
            print(f"{name:<40}{row['ours']['cpu_ms']:>9.2f}{row['monai']['cpu_ms']:>10.2f}{row['cpu_ratio']:>7.1f}x")
    if not result["passed"]:
        raise typer.Exit(1)


def inference(
    size: Annotated[int, typer.Option("--size", min=16, max=1024, help="Voxels along each axis of our large volume.")] = 512,
    common: Annotated[int, typer.Option("--monai-size", min=16, max=512, help="Of the volume that both label.")] = 160,
    classes: Annotated[int, typer.Option("--classes", min=2, max=1000, help="Classes of the label map.")] = 50,
    patch: Annotated[int, typer.Option("--patch", min=8, max=256, help="Voxels along each axis of a window.")] = 64,
    overlap: Annotated[float, typer.Option("--overlap", min=0, max=0.9, help="Of neighbouring windows.")] = 0.25,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Turns of both; the median counts.")] = 1,
    json: Json = False,
) -> None:
    """Time and peak memory of labelling a whole volume in windows, beside MONAI's inferer. MONAI needs the scores of all classes.

    Example: `mri-ds bench inference --size 256 --monai-size 128 --json`
    """
    from mri_ds.bench.inference import bench_inference

    with console.stdout_for_result(), console.progress("bench inference") as report:
        result = bench_inference(
            size=size, common=common, classes=classes, patch=patch, overlap=overlap, rounds=rounds, progress=report
        )
    if json:
        console.print_json(result)
        return
    print(f"{f'{classes} classes':<20}{'wall s':>10}{'CPU s':>10}{'peak GiB':>10}{'all scores':>12}")
    rows = [*result["common"].items(), *([("mri_ds", result["large"])] if result["large"] else [])]
    for name, row in rows:
        peak, buffer = (row[key] / 2**30 for key in ("peak_bytes", "buffer_bytes"))
        times = f"{row['wall_s']:>10.1f}{row['cpu_s']:>10.1f}"
        print(f"{name + ' ' + str(row['size']) + '^3':<20}{times}{peak:>10.2f}{buffer:>8.2f} GiB")
    ratios = f"{result['wall_ratio']:.2f} times the wall time, {result['cpu_ratio']:.2f} times the CPU time"
    print(
        f"MONAI takes {ratios} and {result['peak_ratio']:.1f} times the memory; {result['equal_share']:.4%} of labels are equal"
    )
