"""One micro-batch, forward and backward, on fake tensors: what it would hold in memory, compute and move.

The real objective runs, so that a change of the network is a change of the plan; but every tensor is PyTorch's FakeTensor, which
has a shape, a type and a place, and no numbers. A dispatch mode sees each operator: it counts the bytes of storages that are
alive, the floating-point operations of products and convolutions, and the bytes that an operator reads and writes.
Weights are not counted here, and a weight's gradient only until it is complete: what becomes of them is up to ZeRO (memory.py).
Experts are taken to be evenly loaded, which routing on real numbers would decide.
"""

import sys
import weakref
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from mri_ds.config import RunConfig, TrainingConfig
from mri_ds.nn.moe import Experts, MixtureOfExperts, through_experts, weigh
from mri_ds.sample import Batch
from mri_ds.training.engine import build_objective

FEW, MANY = 2, 16  # a batch of one takes a few operators less, where dimensions of one are dropped
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
VIEWS = ("view", "_unsafe_view", "t", "transpose", "permute", "expand", "select", "slice", "unsqueeze", "squeeze", "detach",
         "alias", "as_strided", "split", "unbind", "unfold", "empty", "empty_like", "new_empty", "empty_strided",
         "lift_fresh")  # fmt: skip


@dataclass(frozen=True)
class Trace:
    """What one micro-batch costs one rank. Bytes of activations, without weights and their gradients."""

    peak_bytes: int  # most that is alive at once
    kept_bytes: int  # alive when the backward pass begins: what recomputation is there to lessen
    flops: int  # floating-point operations, forward, recomputation and backward
    operators: int  # kernels that would be launched
    work: tuple[tuple[int, int], ...] = field(repr=False)  # (flops, bytes read and written) of each

    def seconds(self, *, flops_per_s: float, bytes_per_s: float, launch_s: float) -> tuple[float, float]:
        """A roofline: each operator takes the longer of its arithmetic and its bytes, and not less than its launch.

        Returns all of it, and what of it was waiting for launches.
        """
        kernels = [max(flops / flops_per_s, size / bytes_per_s) for flops, size in self.work]
        waiting = sum(max(0.0, launch_s - seconds) for seconds in kernels)
        return sum(kernels) + waiting, waiting


@dataclass(frozen=True)
class Line:
    """A Trace of any micro-batch, from those of FEW and MANY: every tensor has the batch as a factor, or is the same for all.

    A peak may move from one operator to another as the batch grows, so it is convex: between the two the line lies above it.
    """

    few: Trace
    many: Trace
    micro_batch: int

    def _at(self, few: float, many: float) -> float:
        return few + (many - few) * (self.micro_batch - FEW) / (MANY - FEW)

    @property
    def peak_bytes(self) -> int:
        return int(self._at(self.few.peak_bytes, self.many.peak_bytes))

    @property
    def flops(self) -> int:
        return int(self._at(self.few.flops, self.many.flops))

    def seconds(self, *, flops_per_s: float, bytes_per_s: float, launch_s: float) -> tuple[float, float]:
        """As Trace.seconds. The wait for launches is that of the nearer batch: it shrinks as operators grow."""
        rates = {"flops_per_s": flops_per_s, "bytes_per_s": bytes_per_s}
        work = max(0.0, self._at(*(t.seconds(**rates, launch_s=0.0)[0] for t in (self.few, self.many))))
        nearer = self.few if self.micro_batch < (FEW + MANY) / 2 else self.many
        waiting = nearer.seconds(**rates, launch_s=launch_s)[1]
        return work + waiting, waiting


def at_micro_batch(micro_batch: int, config: RunConfig, *, precision: str, recompute: str) -> Line:
    """The cost of `micro_batch` patches, without a trace of its own."""
    few, many = (trace(config, micro_batch=n, precision=precision, recompute=recompute) for n in (FEW, MANY))
    return Line(few, many, micro_batch)


def trace(config: RunConfig, *, micro_batch: int, precision: str, recompute: str) -> Trace:
    """The objective of `config` on a batch of `micro_batch` of its patches, computed in "bf16", "fp16" or "fp32"."""
    science = config.model_copy(update={"training": TrainingConfig()})  # on which it does not depend
    return _trace(science.model_dump_json(), micro_batch, precision, recompute)


@lru_cache(maxsize=32)
def _trace(config_json: str, micro_batch: int, precision: str, recompute: str) -> Trace:
    config = RunConfig.model_validate_json(config_json)
    assert config.data.patch != "auto"
    try:
        return _run(config, micro_batch, precision, recompute)
    finally:
        _forget_tables()


def _run(config: RunConfig, micro_batch: int, precision: str, recompute: str) -> Trace:
    with FakeTensorMode(allow_non_fake_inputs=True):
        objective = build_objective(config)
        objective.net.encoder.recompute = recompute  # type: ignore[union-attr, assignment]
        even_experts(objective)
        cast(objective, DTYPES[precision])
        for p in objective.parameters():
            p.register_post_accumulate_grad_hook(_forget_gradient)
        watch = _Watch(ignored=[*objective.parameters(), *objective.buffers()])
        batch = make_batch(config, micro_batch)
        with watch:
            loss = objective(batch)["loss"]
            kept = watch.alive
            loss.backward()
    return Trace(watch.peak, kept, sum(f for f, _ in watch.work), len(watch.work), tuple(watch.work))


def _counts(values: torch.Tensor, weights: torch.Tensor | None = None, minlength: int = 0) -> torch.Tensor:
    """bincount whose length does not depend on numbers: all of the project's counts state it."""
    return values.new_empty(minlength, dtype=torch.int64 if weights is None else torch.float64)


def cast(module: nn.Module, dtype: torch.dtype) -> None:
    """As `module.to(dtype)`, which cannot swap fake parameters."""
    for child in module.modules():
        for name, p in child._parameters.items():
            if p is not None:
                child._parameters[name] = nn.Parameter(p.detach().to(dtype))


def _forget_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None


class _Watch(TorchDispatchMode):
    """Bytes of storages alive now and at most, and (flops, bytes) of every operator that computes."""

    def __init__(self, ignored: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self.work: list[tuple[int, int]] = []
        self._seen = {id(t.untyped_storage()): t.untyped_storage() for t in ignored}
        self._live: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        is_unknown = func is torch.ops.aten.bincount.default and isinstance(args[0], FakeTensor)
        out = _counts(*args, **kwargs) if is_unknown else func(*args, **kwargs)
        tensors = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        for t in tensors:
            self._hold(t.untyped_storage())
        packet = func._overloadpacket
        if tensors and packet.__name__ not in VIEWS:
            count = flop_registry.get(packet)
            flops = int(count(*args, **kwargs, out_val=out)) if count is not None else 0
            inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
            self.work.append((flops, sum(t.numel() * t.element_size() for t in [*inputs, *tensors])))
        return out

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self._seen or key in self._live:
            return
        size = storage.nbytes()
        self._live[key] = weakref.ref(storage, lambda _: self._let_go(key, size))
        self.alive += size
        self.peak = max(self.peak, self.alive)

    def _let_go(self, key: int, size: int) -> None:
        del self._live[key]
        self.alive -= size


def _forget_tables() -> None:
    """Layers keep tables of positions for the next call (lru_cache); those made here are fake, and would make real ones fake."""
    for name, module in list(sys.modules.items()):
        if name.startswith("mri_ds.nn."):
            for value in vars(module).values():
                if callable(clear := getattr(value, "cache_clear", None)):
                    clear()


def even_experts(module: nn.Module) -> None:
    """Each mixture of experts, in place, as a single expert that sees every routed row: the same shapes, work and memory."""
    for child in module.modules():
        for name, layer in child.named_children():
            if isinstance(layer, MixtureOfExperts):
                setattr(child, name, _EvenExperts(layer))


class _EvenExperts(nn.Module):
    """MixtureOfExperts.forward, but for how many rows an expert gets, which on fake tensors nobody can say."""

    def __init__(self, layer: MixtureOfExperts) -> None:
        super().__init__()
        _, width, dim = layer.experts.gate_up_proj.shape
        self.gate, self.top_k = layer.gate, layer.top_k
        self.experts = Experts(dim, num_experts=1, hidden=width // 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        rows = tokens.reshape(-1, tokens.shape[-1])
        weights, chosen, _ = self.gate(rows, top_k=self.top_k)
        out = through_experts(rows, torch.zeros_like(chosen), self._product, num_experts=1)
        return weigh(out, weights).view_as(tokens)

    def _product(self, rows: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        return self.experts(rows, torch.tensor([len(rows)]))  # type: ignore[no-any-return]


def make_batch(config: RunConfig, micro_batch: int) -> Batch:
    patch = config.data.patch
    assert patch != "auto"
    targets: dict[str, torch.Tensor] = defaultdict()
    for name, task in config.tasks.items():
        if task.kind == "segmentation":
            targets[name] = torch.empty(micro_batch, *patch, dtype=torch.int64)
        else:
            targets[name] = torch.empty(micro_batch, dtype=torch.int64 if task.kind == "classification" else torch.float32)
    return {
        "image": torch.empty(micro_batch, config.model.in_channels, *patch),
        "spacing_mm": torch.empty(micro_batch, 3),
        "targets": dict(targets),
        "mask": {name: torch.empty(micro_batch) for name in config.tasks},
    }
