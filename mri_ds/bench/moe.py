"""What routing costs: the mixture of experts of each scale beside one dense network of the same active work.

Axes: N tokens, D width, E experts of width F, K experts per token.
The dense network is a SwiGLU of width K F made of PyTorch's own linear layers: the same products, in a few large pieces. Forward
and backward in turn; every round brings tokens that were not seen before, as a training step does, so that experts get other
numbers of rows. Medians count.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mri_ds.config import SCALES
from mri_ds.nn.moe import MixtureOfExperts

TARGETS = {"small": 2.0, "base": 1.3, "large": 1.3, "xl": 1.3}  # times the dense network's time
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TOP_K = 2


class Dense(nn.Module):
    """SwiGLU, (N, D) -> (N, D)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(dim, 2 * hidden, bias=False), nn.Linear(hidden, dim, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        gate, up = self.inner(tokens).chunk(2, dim=-1)
        return self.outer(F.silu(gate) * up)  # type: ignore[no-any-return]


def bench_moe(
    *,
    scales: Sequence[str] = tuple(TARGETS),
    tokens: int = 4096,
    dtype: str = "bfloat16",
    rounds: int = 9,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """{"scales": {name: {"dim", "moe_ms", "dense_ms", "cpu_ratio", "wall_ratio", ...}}, "targets", "passed"}.

    Passed where the median of the rounds' CPU time (all threads) is at most the target times the dense network's: CPU time, for
    the two do the same arithmetic on the same threads, and other processes on the machine do not count.
    """
    result: dict[str, Any] = {"tokens": tokens, "dtype": dtype, "rounds": rounds, "threads": torch.get_num_threads()}
    rows = {}
    for done, scale in enumerate(scales):
        torch.manual_seed(seed)
        rows[scale] = _row(SCALES[scale], tokens, DTYPES[dtype], rounds)
        if progress:
            progress(done + 1, len(scales))
    passed = {scale: rows[scale]["cpu_ratio"] <= TARGETS[scale] for scale in scales if scale in TARGETS}
    return result | {"scales": rows, "targets": TARGETS, "passed": passed}


def _row(scale: dict[str, int], tokens: int, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    dim, experts, hidden = scale["embed_dim"], scale["num_experts"], scale["expert_hidden"]
    moe = MixtureOfExperts(dim, num_experts=experts, expert_hidden=hidden, top_k=TOP_K).to(dtype)
    moe.gate.e_score_correction_bias = moe.gate.e_score_correction_bias.float()  # as training keeps it
    contenders = {"moe": moe, "dense": Dense(dim, TOP_K * hidden).to(dtype)}
    wall: dict[str, list[float]] = {name: [] for name in contenders}
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 2):  # the first two make ready
        seen = torch.randn(1, tokens, dim).to(dtype)
        for name, module in contenders.items():
            seconds = _step(module, seen)
            if number > 1:
                wall[name].append(seconds[0])
                cpu[name].append(seconds[1])
    median = {name: [1e3 * statistics.median(times) for times in (wall[name], cpu[name])] for name in contenders}
    return {
        "dim": dim,
        "num_experts": experts,
        "expert_hidden": hidden,
        "moe_ms": median["moe"][0],
        "dense_ms": median["dense"][0],
        "moe_cpu_ms": median["moe"][1],
        "dense_cpu_ms": median["dense"][1],
        "wall_ratio": median["moe"][0] / median["dense"][0],
        "cpu_ratio": median["moe"][1] / median["dense"][1],
    }


def _step(module: nn.Module, seen: Tensor) -> tuple[float, float]:
    """Wall and CPU seconds of forward and backward."""
    module.zero_grad()
    inputs, grad = seen.detach().requires_grad_(), seen
    began, began_cpu = time.perf_counter(), time.process_time()
    module(inputs).backward(grad)
    return time.perf_counter() - began, time.process_time() - began_cpu
