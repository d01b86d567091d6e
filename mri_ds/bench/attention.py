"""What attention costs as the grid of tokens grows: windows beside every token with every other, in one run.

On a CPU one thread and its CPU time, so that other processes do not count, and the growth of the resident set; on a GPU wall
time between synchronisations, and PyTorch's own peak. The smallest of a few rounds counts, after one that warms up and shows
which kernel ran. A pass is the forward pass without a graph, `train` forward and backward.
With small pages a CPU spends a third of the time of large grids on asking the system for memory; PyTorch takes it in huge pages
where the environment says THP_MEM_ALLOC_ENABLE=1, which the result notes.
"""

import ctypes
import gc
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mri_ds.errors import InputError
from mri_ds.nn.attention import FlashAttention, SparseAttention
from mri_ds.nn.backends import BackendsRan

TARGET = 0.15  # how far from the line windows may be
ENOUGH_S = 0.3  # of rounds
PAGE = 4096  # bytes: nothing smaller can be seen
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def bench_attention(
    *,
    edges: Sequence[int] = (8, 12, 16, 24, 32, 48, 64),
    dim: int = 128,
    heads: int = 4,
    window: int = 4,
    dtype: str = "float32",
    device: str = "cpu",
    limit_s: float = 10.0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Rows {"edge", "tokens", "pass_ms", "train_ms", "pass_bytes", "train_bytes", "backends"} of grids edge^3 for "windowed"
    (shifted windows of window^3 tokens) and "full", a grid at a time and both in turn.

    "left_out" names the grids of full attention that would have taken more than `limit_s` seconds of training, judged by the
    square of the tokens. "fits": for each measure of "windowed" the line fixed + each * tokens (least squares of the relative
    error) and its "largest_deviation"; for "full" the "power" of the tokens by which the last step grew.
    """
    if window > min(edges) or len(edges) < 3:
        raise InputError(f"grids {list(edges)} with windows of {window}", fix="give at least three edges, none below the window")
    torch.manual_seed(seed)
    full = FlashAttention(dim, heads).to(device, DTYPES[dtype])
    windowed = SparseAttention(dim, heads, window=(window,) * 3, shift=True).to(device, DTYPES[dtype])
    result: dict[str, Any] = {
        "dim": dim, "heads": heads, "window": window, "dtype": dtype, "device": device, "threads": 1,
        "huge_pages": os.environ.get("THP_MEM_ALLOC_ENABLE") == "1",
        "windowed": [], "full": [], "left_out": [],
    }  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for done, edge in enumerate(sorted(edges)):
            result["windowed"].append(_row(windowed, edge, dim))
            expected_s = _expected_s(result["full"], edge)
            if expected_s <= limit_s:
                result["full"].append(_row(full, edge, dim))
            else:
                reason = f"training on it would take about {expected_s:.0f} s, more than {limit_s:g}"
                result["left_out"].append({"edge": edge, "tokens": edge**3, "reason": reason})
            if progress:
                progress(done + 1, len(edges))
    finally:
        torch.set_num_threads(threads)
    measures = ["pass_ms", "train_ms", "pass_bytes", "train_bytes"]
    result["fits"] = {
        "windowed": {measure: line([(row["tokens"], row[measure]) for row in result["windowed"]]) for measure in measures},
        "full": {measure: _power(result["full"][-2:], measure) for measure in measures},
    }
    found = result["fits"]["windowed"]
    result["target"] = TARGET
    result["passed"] = {measure: found[measure]["largest_deviation"] <= TARGET for measure in ("pass_ms", "train_ms")}
    return result


def line(points: Sequence[tuple[int, float]]) -> dict[str, float]:
    """fixed + each * tokens through (tokens, cost) by least squares of the relative error, and the largest of those left."""
    tokens, cost = np.array(points, dtype=float).T
    columns = np.stack([np.ones_like(tokens), tokens], axis=1)
    fixed, each = np.linalg.lstsq(columns / cost[:, None], np.ones_like(cost), rcond=None)[0]
    deviation = np.abs(cost / (columns @ [fixed, each]) - 1).max()
    return {"fixed": float(fixed), "each": float(each), "largest_deviation": float(deviation)}


def _power(rows: list[dict[str, Any]], measure: str) -> float | None:
    """p of cost ~ tokens^p between two grids."""
    if len(rows) < 2 or not all(row[measure] for row in rows):
        return None
    small, large = rows
    return float(np.log(large[measure] / small[measure]) / np.log(large["tokens"] / small["tokens"]))


def _expected_s(rows: list[dict[str, Any]], edge: int) -> float:
    if not rows:
        return 0.0
    return float(rows[-1]["train_ms"] / 1000 * (edge**3 / rows[-1]["tokens"]) ** 2)


def _row(module: FlashAttention | SparseAttention, edge: int, dim: int) -> dict[str, Any]:
    weight = module.qkv.weight
    tokens = torch.randn(1, edge**3, dim, device=weight.device, dtype=weight.dtype)
    grad = torch.ones_like(tokens)
    grid = (edge, edge, edge)

    def forward() -> None:
        with torch.no_grad():
            module(tokens, grid)

    def train() -> None:
        inputs = tokens.detach().requires_grad_()
        module(inputs, grid).backward(grad)
        module.zero_grad()

    with BackendsRan() as ran:
        forward()
    row: dict[str, Any] = {"edge": edge, "tokens": edge**3, "backends": sorted(set(ran.names))}
    for name, run in (("pass", forward), ("train", train)):
        row[f"{name}_bytes"] = _peak_bytes(run, weight.device)
        row[f"{name}_ms"] = round(_seconds(run, weight.device) * 1e3, 3)
    return row


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    """The shortest of at least two rounds, of more while they are short."""
    best, spent, rounds = float("inf"), 0.0, 0
    while rounds < 2 or (spent < ENOUGH_S and rounds < 50):
        start = _now(device)
        run()
        took = _now(device) - start
        best, spent, rounds = min(best, took), spent + took, rounds + 1
    return best


def _now(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def _peak_bytes(run: Callable[[], None], device: torch.device) -> int:
    """How far memory grew while `run` ran: on a CPU the resident set, as Linux notes its highest mark."""
    gc.collect()
    if device.type != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return int(torch.cuda.max_memory_allocated(device) - before)
    ctypes.CDLL(None).malloc_trim(0)  # what earlier runs freed is given back, so that it counts again
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts anew from here
    before = status_bytes("VmRSS")
    run()
    return max(PAGE, status_bytes("VmHWM") - before)


def status_bytes(key: str) -> int:
    match = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match, key
    return 1024 * int(match[1])
