"""`mri-ds bench augment|loader|crop`: the data path beside nibabel, webdataset and MONAI."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mri_ds.cli import console

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


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


def loader(
    source: Annotated[
        Path | None, typer.Option("--data", help="A dataset of .nii.gz files. Default: synthetic subjects.")
    ] = None,
    subjects: Annotated[int, typer.Option("--subjects", min=2, help="How many subjects.")] = 6,
    size: Annotated[int, typer.Option("--size", min=16, max=512, help="Voxels along each axis of synthetic subjects.")] = 256,
    patch: Annotated[int, typer.Option("--patch", min=8, max=512, help="Voxels along each axis of a crop.")] = 64,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes that load.")] = 2,
    epochs: Annotated[int, typer.Option("--epochs", min=2, help="The first fills caches and counts apart.")] = 3,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Turns of all contenders; the median counts.")] = 1,
    seconds: Annotated[float, typer.Option("--seconds", min=0, help="The other epochs go on for so long at least.")] = 2.0,
    json: Json = False,
) -> None:
    """Voxels per second from the disk, beside nibabel, webdataset and MONAI on .nii.gz; full volumes and crops.

    Example: `mri-ds bench loader --size 128 --patch 32 --json`
    """
    from mri_ds.bench.loader import bench_loader

    with console.stdout_for_result(), console.progress("bench loader") as report:
        result = bench_loader(
            source,
            num_subjects=subjects,
            size=size,
            patch=(patch, patch, patch),
            num_workers=workers,
            epochs=epochs,
            rounds=rounds,
            seconds=seconds,
            progress=report,
        )
    if json:
        console.print_json(result)
        return
    for mode in ("full", "crops"):
        print(f"{mode:<26}{'Mvoxel/s':>10}{'ours is':>10}{'first batch':>13}{'peak MiB':>10}")
        for name, row in result[mode].items():
            print(f"  {name:<24}{_told(row, result['ratios'][mode].get(name))}")


def _told(row: dict[str, Any], ratio: float | None) -> str:
    if "absent" in row:
        return f"  {row['absent']}"
    times = "" if ratio is None else f"{ratio:.1f}x"
    return f"{row['voxels_per_s'] / 1e6:>10.1f}{times:>10}{row['first_batch_s']:>11.2f} s{row['peak_bytes'] / 2**20:>10.0f}"


def crop(
    size: Annotated[int, typer.Option("--size", min=16, max=800, help="Voxels along each axis of the volume.")] = 512,
    crop: Annotated[int, typer.Option("--crop", min=8, max=512, help="Voxels along each axis of the crop.")] = 128,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Places to crop at; the median counts.")] = 5,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of volume and places.")] = 0,
    json: Json = False,
) -> None:
    """Bytes and time of a crop out of a large volume, from a shard and from .nii.gz by nibabel. Needs 2 GB at 512 voxels.

    Example: `mri-ds bench crop --size 512 --crop 128 --json`
    """
    from mri_ds.bench.crop import bench_crop

    with console.stdout_for_result(), console.progress("bench crop") as report:
        result = bench_crop(size=size, crop=crop, repeats=repeats, seed=seed, progress=report)
    if json:
        console.print_json(result)
        return
    print(f"{f'{crop}^3 of {size}^3':<20}{'MB read':>10}{'of file':>10}{'CPU ms':>10}{'wall ms':>10}")
    for name in ("mri_ds", "nibabel"):
        row = result[name]
        read = "-" if row["bytes_read"] is None else f"{row['bytes_read'] / 1e6:.1f}"
        share = "-" if row["share"] is None else f"{row['share']:.1%}"
        print(f"  {name:<18}{read:>10}{share:>10}{row['cpu_ms']:>10.0f}{row['wall_ms']:>10.0f}")
    print(f"nibabel takes {result['cpu_ratio']:.1f} times the CPU time, {result['wall_ratio']:.1f} times the wall time")
