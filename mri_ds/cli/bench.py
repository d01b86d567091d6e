"""`mri-ds bench`: measurements beside other people's code, one command each."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mri_ds.cli import console
from mri_ds.config import SCALES
from mri_ds.errors import InputError

app = typer.Typer(help="Measure the data path and training beside other people's code.", no_args_is_help=True)
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


@app.command("loader")
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
            progress=report,
        )
    if json:
        console.print_json(result)
        return
    for mode in ("full", "crops"):
        print(f"{mode:<26}{'Mvoxel/s':>10}{'ours is':>10}{'first batch':>13}{'peak MiB':>10}")
        for name, row in result[mode].items():
            print(f"  {name:<24}{_told(row, result['ratios'][mode].get(name))}")


@app.command("crop")
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


@app.command("kan")
def kan(
    rows: Annotated[int, typer.Option("--rows", min=1, help="Rows that go through the layer at once.")] = 4096,
    in_features: Annotated[int, typer.Option("--in", min=1, help="Inputs of the layer.")] = 256,
    out_features: Annotated[int, typer.Option("--out", min=1, help="Outputs of the layer.")] = 256,
    grid_size: Annotated[int, typer.Option("--grid", min=1, help="Intervals of the grid.")] = 8,
    degree: Annotated[int, typer.Option("--degree", min=1, max=5, help="Of the splines; 3 is cubic.")] = 3,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Turns of both; the median counts.")] = 7,
    json: Json = False,
) -> None:
    """Time and peak memory of a KAN layer's forward and backward pass, beside the dense formulation; many heads at once.

    Example: `mri-ds bench kan --rows 4096 --json`
    """
    from mri_ds.bench.kan import DTYPES, bench_kan

    with console.stdout_for_result(), console.progress("bench kan") as report:
        result = bench_kan(
            rows=rows,
            in_features=in_features,
            out_features=out_features,
            grid_size=grid_size,
            degree=degree,
            rounds=rounds,
            progress=report,
        )
    if json:
        console.print_json(result)
        return
    print(f"{'forward and backward':<24}{'ours':>12}{'dense':>12}{'ratio':>8}")
    for dtype in DTYPES:
        row = result[dtype]
        ours, dense = row["ours"], row["dense"]
        print(f"{dtype + ', ms':<24}{ours['ms']:>12.1f}{dense['ms']:>12.1f}{row['time_ratio']:>7.1f}x")
        mib = [each["peak_bytes"] / 2**20 for each in (ours, dense)]
        print(f"{dtype + ', peak MiB':<24}{mib[0]:>12.0f}{mib[1]:>12.0f}{row['memory_ratio']:>7.1f}x")
    for way, ms in result["heads"]["ms"].items():
        print(f"{result['heads']['num_tasks']} heads, {way.replace('_', ' ')}: {ms:.2f} ms")


def _told(row: dict[str, Any], ratio: float | None) -> str:
    if "absent" in row:
        return f"  {row['absent']}"
    times = "" if ratio is None else f"{ratio:.1f}x"
    return f"{row['voxels_per_s'] / 1e6:>10.1f}{times:>10}{row['first_batch_s']:>11.2f} s{row['peak_bytes'] / 2**20:>10.0f}"


@app.command("metrics")
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


@app.command("attention")
def attention(
    edges: Annotated[str, typer.Option("--edges", help="Tokens along each axis of the grids.")] = "8,12,16,24,32,48,64",
    dim: Annotated[int, typer.Option("--dim", min=6, help="Width of the tokens.")] = 128,
    heads: Annotated[int, typer.Option("--heads", min=1, help="Heads that the width is divided over.")] = 4,
    window: Annotated[int, typer.Option("--window", min=1, help="Tokens along each axis of a window.")] = 4,
    dtype: Annotated[str, typer.Option("--dtype", help="float32 or bfloat16.")] = "float32",
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    limit_s: Annotated[float, typer.Option("--limit-s", min=0, help="Full attention stops where a step would take more.")] = 10.0,
    json: Json = False,
) -> None:
    """Time and memory of windowed attention as the grid grows, beside full attention.

    Exit code 1 when the time of windowed attention is not within 15 % of a line in the number of tokens.

    Example: `mri-ds bench attention --edges 8,16,32,64 --json`
    """
    sizes = _edges(edges)
    if dtype not in ("float32", "bfloat16"):
        raise InputError(f"unknown type {dtype!r}", where="--dtype", fix="use float32 or bfloat16")
    if dim % heads or dim // heads % 2 or dim // heads < 6:
        raise InputError(f"--dim {dim} over --heads {heads}", fix="let each head have an even width of at least 6")
    if device not in ("cpu", "cuda"):
        raise InputError(f"unknown device {device!r}", where="--device", fix="use cpu or cuda")
    from mri_ds.bench.attention import bench_attention

    with console.stdout_for_result(), console.progress("bench attention") as report:
        result = bench_attention(
            edges=sizes, dim=dim, heads=heads, window=window, dtype=dtype, device=device, limit_s=limit_s, progress=report
        )
    if json:
        console.print_json(result)
    else:
        _print_attention(result)
    if not all(result["passed"].values()):
        raise typer.Exit(1)


def _edges(text: str) -> list[int]:
    try:
        edges = [int(part) for part in text.split(",")]
    except ValueError:
        edges = []
    if not edges or min(edges) < 1 or max(edges) > 128 or len(set(edges)) < len(edges):
        raise InputError(f"--edges {text!r} is no list of different numbers of tokens, 1 to 128", fix="write it as 8,16,32")
    return edges


def _print_attention(result: dict[str, Any]) -> None:
    print(f"{'tokens':<24}{'pass ms':>10}{'train ms':>10}{'pass MiB':>10}{'train MiB':>11}  back end")
    for kind in ("windowed", "full"):
        for row in result[kind]:
            memory = f"{row['pass_bytes'] / 2**20:>10.1f}{row['train_bytes'] / 2**20:>11.1f}"
            name = f"{kind} {row['edge']}^3"
            print(f"{name:<24}{row['pass_ms']:>10.2f}{row['train_ms']:>10.2f}{memory}  {', '.join(row['backends'])}")
    for row in result["left_out"]:
        print(f"full {row['edge']}^3 left out: {row['reason']}")
    for name, fit in result["fits"]["windowed"].items():
        print(f"windowed {name:<15} within {100 * fit['largest_deviation']:.0f} % of a line (target for times: 15 %)")
    print(f"full: training grows with the tokens to the power of {result['fits']['full']['train_ms'] or float('nan'):.2f}")


@app.command("scaling")
def scaling(
    scale: Annotated[str, typer.Option("--scale", help="Size of the network.")] = "small",
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
    if part not in ("targets", "weak", "both"):
        raise InputError(f"unknown part {part!r}", where="--part", fix="use targets, weak or both")
    if scale not in SCALES:
        raise InputError(f"unknown scale {scale!r}", where="--scale", fix=f"use one of {', '.join(SCALES)}")
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


@app.command("volume")
def volume(
    scale: Annotated[str, typer.Option("--scale", help="Size of the network.")] = "small",
    edges: Annotated[str, typer.Option("--edges", help="Voxels along each axis of the volumes, ascending.")] = "128,192,256",
    classes: Annotated[int, typer.Option("--classes", min=2, max=256, help="Classes of the segmentation.")] = 7,
    dtype: Annotated[str, typer.Option("--dtype", help="float32 or bfloat16.")] = "bfloat16",
    limit_gib: Annotated[float, typer.Option("--limit-gib", min=0, help="Exit code 1 above this peak.")] = 20.0,
    json: Json = False,
) -> None:
    """Peak memory and time of a whole volume in one call on the CPU, with windowed attention. 512 takes minutes and some 12 GiB.

    Example: `mri-ds bench volume --scale small --edges 512 --json`
    """
    sizes = _volumes(edges)
    if dtype not in ("float32", "bfloat16"):
        raise InputError(f"unknown type {dtype!r}", where="--dtype", fix="use float32 or bfloat16")
    if scale not in SCALES:
        raise InputError(f"unknown scale {scale!r}", where="--scale", fix=f"use one of {', '.join(SCALES)}")
    from mri_ds.bench.volume import bench_volume

    with console.stdout_for_result():
        result = bench_volume(scale=scale, edges=sizes, classes=classes, dtype=dtype)
    result["limit_bytes"] = int(limit_gib * 2**30)
    result["passed"] = all(row["is_finite"] and row["peak_bytes"] <= result["limit_bytes"] for row in result["rows"])
    if json:
        console.print_json(result)
    else:
        print(f"{'volume':<10}{'peak GiB':>10}{'before':>10}{'seconds':>10}{'CPU s':>10}")
        for row in result["rows"]:
            memory = f"{row['peak_bytes'] / 2**30:>10.2f}{row['before_bytes'] / 2**30:>10.2f}"
            print(f"{row['edge']}^3".ljust(10) + memory + f"{row['seconds']:>10.1f}{row['cpu_seconds']:>10.1f}")
    if not result["passed"]:
        raise typer.Exit(1)


def _volumes(text: str) -> list[int]:
    try:
        edges = [int(part) for part in text.split(",")]
    except ValueError:
        edges = []
    if not edges or min(edges) < 8 or max(edges) > 1024 or sorted(set(edges)) != edges:
        raise InputError(f"--edges {text!r} is no ascending list of edges, 8 to 1024", fix="write it as 128,256,512")
    return edges


@app.command("network")
def network(
    contenders: Annotated[
        str, typer.Option("--contenders", help="Scales (SCALE+compile: compiled) and peers, separated by commas. Default: all.")
    ] = "",
    patch: Annotated[int, typer.Option("--patch", min=16, max=256, help="Voxels along each axis; 32 divides it.")] = 96,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Patches of a step.")] = 1,
    dtype: Annotated[str, typer.Option("--dtype", help="float32 or bfloat16.")] = "bfloat16",
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of a turn, after two that make ready.")] = 2,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Turns of all; the median counts.")] = 3,
    json: Json = False,
) -> None:
    """A training step beside MONAI's SwinUNETR and UNETR and nnU-Net's networks: voxels per second, memory, FLOP/s.

    Run it on a machine that does nothing else. Exit code 1 when a target is missed; they hold for 96^3 in bfloat16.

    Example: `mri-ds bench network --contenders small,small+compile,UNETR --json`
    """
    if dtype not in ("float32", "bfloat16"):
        raise InputError(f"unknown type {dtype!r}", where="--dtype", fix="use float32 or bfloat16")
    if patch % 32:
        raise InputError(f"--patch {patch} is no multiple of 32, which SwinUNETR needs", fix="use 64, 96 or 128")
    from mri_ds.bench.network import USUAL, bench_network

    names = tuple(name.strip() for name in contenders.split(",")) if contenders else USUAL
    with console.stdout_for_result(), console.progress("bench network") as report:
        result = bench_network(
            contenders=names, patch=patch, batch=batch, dtype=dtype, steps=steps, rounds=rounds, progress=report
        )
    if json:
        console.print_json(result)
    else:
        _print_network(result)
    if not all(result["passed"].values()):
        raise typer.Exit(1)


def _print_network(result: dict[str, Any]) -> None:
    title = f"{result['patch']}^3, batch {result['batch']}, {result['dtype']}"
    print(f"{title:<28}{'s/step':>8}{'CPU s':>8}{'kvoxel/s':>10}{'peak MiB':>10}{'of products':>13}{'small is':>10}")
    for name, row in result["contenders"].items():
        if "absent" in row:
            print(f"{name:<28}{row['absent']}")
            continue
        ratio = f"{result['small_is'][name]['wall']:.1f}x" if name in result["small_is"] else ""
        figures = f"{row['step_s']:>8.2f}{row['cpu_s']:>8.2f}{row['voxels_per_s'] / 1e3:>10.0f}{row['peak_bytes'] / 2**20:>10.0f}"
        print(f"{name:<28}{figures}{row['share_of_products']:>13.1%}{ratio:>10}")
    for name, is_met in result["passed"].items():
        print(f"target: {result['targets'][name]:g} times {name}: {'met' if is_met else 'missed'}")


@app.command("moe")
def moe(
    scales: Annotated[str, typer.Option("--scales", help="Separated by commas.")] = "small,base,large,xl",
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Tokens of a pass.")] = 4096,
    dtype: Annotated[str, typer.Option("--dtype", help="float32 or bfloat16.")] = "bfloat16",
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Passes of both; the median counts.")] = 9,
    json: Json = False,
) -> None:
    """The mixture of experts of each scale beside a dense network of the same active work, forward and backward.

    Exit code 1 when a target is missed: 2 times the dense network's CPU time for `small`, 1.3 times for the others.

    Example: `mri-ds bench moe --scales small,base --json`
    """
    names = scales.split(",")
    for name in names:
        if name not in SCALES:
            raise InputError(f"unknown scale {name!r}", where="--scales", fix=f"use some of {', '.join(SCALES)}")
    if dtype not in ("float32", "bfloat16"):
        raise InputError(f"unknown type {dtype!r}", where="--dtype", fix="use float32 or bfloat16")
    from mri_ds.bench.moe import bench_moe

    with console.stdout_for_result(), console.progress("bench moe") as report:
        result = bench_moe(scales=names, tokens=tokens, dtype=dtype, rounds=rounds, progress=report)
    if json:
        console.print_json(result)
    else:
        print(f"{'':<8}{'width':>6}{'experts':>9}{'moe ms':>9}{'dense ms':>10}{'CPU ratio':>11}{'wall ratio':>12}{'target':>8}")
        for name, row in result["scales"].items():
            figures = f"{row['dim']:>6}{row['num_experts']:>9}{row['moe_ms']:>9.1f}{row['dense_ms']:>10.1f}"
            target = result["targets"].get(name, float("nan"))
            print(f"{name:<8}{figures}{row['cpu_ratio']:>11.2f}{row['wall_ratio']:>12.2f}{target:>8g}")
    if not all(result["passed"].values()):
        raise typer.Exit(1)


@app.command("inference")
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
