"""`mri-ds bench network|moe|volume|kan|attention`: the network and its layers beside other people's."""

from typing import Annotated, Any

import typer

from mri_ds.cli import console
from mri_ds.cli.choices import one_of, option_of, some_of
from mri_ds.config import SCALES
from mri_ds.errors import InputError

DTYPES = ("float32", "bfloat16")
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def network(
    contenders: Annotated[
        str, typer.Option("--contenders", help="Scales (SCALE+compile: compiled) and peers, separated by commas. Default: all.")
    ] = "",
    patch: Annotated[int, typer.Option("--patch", min=16, max=256, help="Voxels along each axis; 32 divides it.")] = 96,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Patches of a step.")] = 1,
    dtype: Annotated[str, option_of("--dtype", DTYPES)] = "bfloat16",
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of a turn, after two that make ready.")] = 2,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Turns of all; the median counts.")] = 3,
    json: Json = False,
) -> None:
    """A training step beside MONAI's SwinUNETR and UNETR and nnU-Net's networks: voxels per second, memory, FLOP/s.

    Run it on a machine that does nothing else. Exit code 1 when a target is missed; they hold for 96^3 in bfloat16.

    Example: `mri-ds bench network --contenders small,small+compile,UNETR --json`
    """
    one_of(dtype, DTYPES, "--dtype")
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


def moe(
    scales: Annotated[str, typer.Option("--scales", help="Separated by commas.")] = "small,base,large,xl",
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Tokens of a pass.")] = 4096,
    dtype: Annotated[str, option_of("--dtype", DTYPES)] = "bfloat16",
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Passes of both; the median counts.")] = 9,
    json: Json = False,
) -> None:
    """The mixture of experts of each scale beside a dense network of the same active work, forward and backward.

    Exit code 1 when a target is missed: 2 times the dense network's CPU time for `small`, 1.3 times for the others.

    Example: `mri-ds bench moe --scales small,base --json`
    """
    names = some_of(scales, SCALES, "--scales")
    one_of(dtype, DTYPES, "--dtype")
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


def volume(
    scale: Annotated[str, typer.Option("--scale", help="Size of the network.")] = "small",
    edges: Annotated[str, typer.Option("--edges", help="Voxels along each axis of the volumes, ascending.")] = "128,192,256",
    classes: Annotated[int, typer.Option("--classes", min=2, max=256, help="Classes of the segmentation.")] = 7,
    dtype: Annotated[str, option_of("--dtype", DTYPES)] = "bfloat16",
    limit_gib: Annotated[float, typer.Option("--limit-gib", min=0, help="Exit code 1 above this peak.")] = 20.0,
    json: Json = False,
) -> None:
    """Peak memory and time of a whole volume in one call on the CPU, with windowed attention. 512 takes minutes and some 10 GiB.

    Example: `mri-ds bench volume --scale small --edges 512 --json`
    """
    sizes = _volumes(edges)
    one_of(dtype, DTYPES, "--dtype")
    one_of(scale, SCALES, "--scale")
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
    from mri_ds.bench.kan import DTYPES as KAN_DTYPES
    from mri_ds.bench.kan import bench_kan

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
    for dtype in KAN_DTYPES:
        row = result[dtype]
        ours, dense = row["ours"], row["dense"]
        print(f"{dtype + ', ms':<24}{ours['ms']:>12.1f}{dense['ms']:>12.1f}{row['time_ratio']:>7.1f}x")
        mib = [each["peak_bytes"] / 2**20 for each in (ours, dense)]
        print(f"{dtype + ', peak MiB':<24}{mib[0]:>12.0f}{mib[1]:>12.0f}{row['memory_ratio']:>7.1f}x")
    for way, ms in result["heads"]["ms"].items():
        print(f"{result['heads']['num_tasks']} heads, {way.replace('_', ' ')}: {ms:.2f} ms")


def attention(
    edges: Annotated[str, typer.Option("--edges", help="Tokens along each axis of the grids.")] = "8,12,16,24,32,48,64",
    dim: Annotated[int, typer.Option("--dim", min=6, help="Width of the tokens.")] = 128,
    heads: Annotated[int, typer.Option("--heads", min=1, help="Heads that the width is divided over.")] = 4,
    window: Annotated[int, typer.Option("--window", min=1, help="Tokens along each axis of a window.")] = 4,
    dtype: Annotated[str, option_of("--dtype", DTYPES)] = "float32",
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    limit_s: Annotated[float, typer.Option("--limit-s", min=0, help="Full attention stops where a step would take more.")] = 10.0,
    json: Json = False,
) -> None:
    """Time and memory of windowed attention as the grid grows, beside full attention.

    Exit code 1 when the time of windowed attention is not within 15 % of a line in the number of tokens.

    Example: `mri-ds bench attention --edges 8,16,32,64 --json`
    """
    sizes = _edges(edges)
    one_of(dtype, DTYPES, "--dtype")
    if dim % heads or dim // heads % 2 or dim // heads < 6:
        raise InputError(f"--dim {dim} over --heads {heads}", fix="let each head have an even width of at least 6")
    one_of(device, ("cpu", "cuda"), "--device")
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
