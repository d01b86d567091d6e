"""Our KAN layer beside the dense one, forward and backward: time in turns, peak memory, and that both compute the same.

Axes: B rows, I inputs, O outputs, T tasks.  In: sizes.  Out: a dictionary for JSON.
Times are medians over rounds in which each has its turn. Peak memory is what one forward and backward adds: on a CPU to the
resident set of a fresh process (its high-water mark, reset before), on a GPU to PyTorch's allocator. Ours computes all four base
functions, the dense one SiLU alone, as published; for the comparison of values the mixture is set to SiLU.
"""

import multiprocessing
import re
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mri_ds.bench.dense_kan import DenseKANLayer
from mri_ds.errors import InputError
from mri_ds.heads.parallel import ParallelKANHead
from mri_ds.nn.kan import OptimizedKANLayer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TARGETS = {"time_ratio": 6.0, "memory_ratio": 2.0}  # of float32 at the default sizes
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}  # relative to the largest value
HEAD_SIZES = {"batch": 4, "in_features": 26, "num_tasks": 8}  # as BaseMRINet's volume heads see them
Sizes = dict[str, Any]
Row = dict[str, Any]


def bench_kan(
    *,
    rows: int = 4096,
    in_features: int = 256,
    out_features: int = 256,
    grid_size: int = 8,
    degree: int = 3,
    rounds: int = 7,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Row:
    """Result: {sizes, "threads", "device", "float32": {...}, "bfloat16": {...}, "heads": {...}, "targets", "passed"}.

    Of each dtype {"ours": {"ms", "peak_bytes"}, "dense": {...}, "time_ratio", "memory_ratio" (dense / ours), "largest_difference"
    of outputs and gradients, relative}. "heads": {"ms": {"one_after_another", "together", "threads"}}, forward and backward.
    Raises InputError where the memory of a process cannot be read, RuntimeError should the two compute different things.
    """
    sizes: Sizes = {"rows": rows, "in_features": in_features, "out_features": out_features}
    sizes |= {"grid_size": grid_size, "degree": degree, "seed": seed}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    done, total = 0, len(DTYPES) * (rounds + 3) + 1
    table: Row = {}

    def tell() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    for dtype in DTYPES:
        difference = _largest_difference(sizes, dtype, device)
        if not difference < TOLERANCE[dtype]:
            raise RuntimeError(f"ours and the dense layer differ by {difference:.1e} in {dtype}")
        times = _in_turns({name: _step(name, sizes, dtype, device) for name in ("ours", "dense")}, rounds, device, tell)
        result: Row = {}
        for name, ms in times.items():
            result[name] = {"ms": ms, "peak_bytes": _peak_bytes(name, sizes, dtype, device)}
            tell()
        result["time_ratio"] = result["dense"]["ms"] / result["ours"]["ms"]
        result["memory_ratio"] = result["dense"]["peak_bytes"] / result["ours"]["peak_bytes"]
        table[dtype] = {**result, "largest_difference": difference}
    heads = _heads(rounds, device)
    tell()
    passed = {name: table["float32"][name] >= least for name, least in TARGETS.items()}
    facts = {**sizes, "rounds": rounds, "threads": torch.get_num_threads(), "device": device}
    return {**facts, **table, "heads": heads, "targets": TARGETS, "passed": passed}


def _layers(sizes: Sizes, dtype: str, device: str) -> dict[str, OptimizedKANLayer | DenseKANLayer]:
    torch.manual_seed(sizes["seed"])
    shape = {name: sizes[name] for name in ("in_features", "out_features", "grid_size", "degree")}
    ours = OptimizedKANLayer(**shape).to(device=device, dtype=DTYPES[dtype])
    return {"ours": ours, "dense": DenseKANLayer(ours.grid, ours.coefficients, ours.linear.weight, ours.linear.bias).to(device)}


def _data(sizes: Sizes, dtype: str, device: str) -> tuple[Tensor, Tensor]:
    """Inputs within the grid, where both define the same function, and a gradient of the outputs."""
    generator = torch.Generator().manual_seed(sizes["seed"])
    x = 3.98 * torch.rand(sizes["rows"], sizes["in_features"], generator=generator) - 1.99
    grad = torch.randn(sizes["rows"], sizes["out_features"], generator=generator)
    return x.to(device, DTYPES[dtype]).requires_grad_(), grad.to(device, DTYPES[dtype])


def _step(name: str, sizes: Sizes, dtype: str, device: str) -> Callable[[], None]:
    layer, (x, grad) = _layers(sizes, dtype, device)[name], _data(sizes, dtype, device)

    def step() -> None:
        x.grad = None
        layer.zero_grad(set_to_none=True)
        layer(x).backward(grad)

    return step


def _largest_difference(sizes: Sizes, dtype: str, device: str) -> float:
    """Of the output and the gradients of inputs and control points, relative to the largest value of each."""
    layers, (x, grad) = _layers(sizes, dtype, device), _data(sizes, dtype, device)
    ours = layers["ours"]
    assert isinstance(ours, OptimizedKANLayer)
    with torch.no_grad():
        ours.mixture.fill_(-1e4)[:, 3] = 1e4
    found = []
    for layer in layers.values():
        y = layer(x)
        grads = torch.autograd.grad(y, [x, layer.coefficients], grad)
        found.append([y.detach(), grads[0], grads[1].flatten(1)])
    return max(float(((a - b).abs().max() / b.abs().max()).float()) for a, b in zip(*found))


def _in_turns(
    steps: Mapping[str, Callable[[], object]], rounds: int, device: str, tell: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Medians in ms; the first round warms up and does not count."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if device == "cuda":
                torch.cuda.synchronize()
            if round_:
                times[name].append(1e3 * (time.perf_counter() - start))
        tell()
    return {name: statistics.median(values) for name, values in times.items()}


# ---- memory ----------------------------------------------------------------------------------------------------------


def _peak_bytes(name: str, sizes: Sizes, dtype: str, device: str) -> int:
    if device == "cuda":
        step = _step(name, sizes, dtype, device)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    with multiprocessing.get_context("spawn").Pool(1) as fresh:
        return fresh.apply(_peak_of_this_process, (name, sizes, dtype, torch.get_num_threads()))


def _peak_of_this_process(name: str, sizes: Sizes, dtype: str, threads: int) -> int:
    torch.set_num_threads(threads)
    _step(name, {**sizes, "rows": 2}, dtype, "cpu")()  # libraries are loaded and threads started before
    step = _step(name, sizes, dtype, "cpu")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        before = _status("VmRSS")
        step()
        return _status("VmHWM") - before
    except OSError as err:
        raise InputError("the memory of a process cannot be read", where="/proc/self/clear_refs", fix="run it on Linux") from err


def _status(field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match
    return 1024 * int(match[1])


# ---- heads -----------------------------------------------------------------------------------------------------------


def _heads(rounds: int, device: str) -> Row:
    """Many tasks at once: as one batch, one after another, and (on a CPU) each in a thread of two."""
    torch.manual_seed(0)
    names = [f"task{i}" for i in range(HEAD_SIZES["num_tasks"])]
    head = ParallelKANHead(HEAD_SIZES["in_features"], dict.fromkeys(names, 1)).to(device)
    features = {name: torch.randn(HEAD_SIZES["batch"], HEAD_SIZES["in_features"], device=device) for name in names}

    def learn(out: dict[str, Tensor]) -> None:
        torch.stack([y.square().sum() for y in out.values()]).sum().backward()

    ways: dict[str, Callable[[], None]] = {
        "one_after_another": lambda: learn(head.one_after_another(features)),
        "together": lambda: learn(head(features)),
    }
    with ThreadPoolExecutor(2) as pool:
        if device == "cpu":
            run = lambda name: (name, head.head_of(name)(features[name]))  # noqa: E731
            ways["threads"] = lambda: learn(dict(pool.map(run, names)))
        times = _in_turns(ways, 10 * rounds, device)
    return {**HEAD_SIZES, "ms": times}
