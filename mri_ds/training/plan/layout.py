"""How a run is spread over ranks: what memory, communication and time are functions of."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

# DeepSpeed 0.19's defaults, where a JSON says nothing (runtime/zero/config.py)
REDUCE_BUCKET, PREFETCH_BUCKET = 500_000_000, 50_000_000
PERSISTENCE, REUSE_DISTANCE = 100_000, 1_000_000_000


@dataclass(frozen=True)
class Layout:
    """`slots` ranks on each of `nodes` nodes, `ep` of them sharing the experts. Buckets in elements."""

    nodes: int
    slots: int
    zero: int = 3
    ep: int = 1
    recompute: str = "block"
    precision: str = "bf16"  # or fp16, fp32
    micro_batch: int = 1
    accumulation: int = 1
    offload_optimizer: bool = False
    offload_params: bool = False
    overlap: bool = False
    reduce_bucket: int = REDUCE_BUCKET
    persistence: int = PERSISTENCE
    reuse_distance: int = REUSE_DISTANCE

    @property
    def ranks(self) -> int:
        return self.nodes * self.slots

    @property
    def itemsize(self) -> int:
        return 4 if self.precision == "fp32" else 2

    @property
    def replicas_of_experts(self) -> int:
        """Ranks that hold the same experts, over which ZeRO shards them."""
        return self.ranks // self.ep

    @property
    def recomputes_experts(self) -> bool:
        return self.recompute in ("block", "full")

    def describe(self) -> dict[str, Any]:
        return {"ranks": self.ranks, **asdict(self)}


def layout_of(resolved: Mapping[str, Any], *, nodes: int, slots: int) -> Layout:
    """From a DeepSpeed JSON without "auto", as ds_config.resolve gives it."""
    zero, experts = resolved["zero_optimization"], resolved.get("expert_parallel", {})
    precision = next((name for name in ("bf16", "fp16") if resolved.get(name, {}).get("enabled")), "fp32")
    return Layout(
        nodes=nodes,
        slots=slots,
        zero=zero.get("stage", 0),
        ep=experts.get("autoep_size", 1) if experts.get("enabled") else 1,
        recompute=resolved["activation_checkpointing"]["level"],
        precision=precision,
        micro_batch=resolved["train_micro_batch_size_per_gpu"],
        accumulation=resolved["gradient_accumulation_steps"],
        offload_optimizer=_is_offloaded(zero.get("offload_optimizer")),
        offload_params=_is_offloaded(zero.get("offload_param")),
        overlap=bool(zero.get("overlap_comm", False)),
        reduce_bucket=int(zero.get("reduce_bucket_size", REDUCE_BUCKET)),
        persistence=int(_either(zero, "param_persistence_threshold", PERSISTENCE)),
        reuse_distance=int(_either(zero, "max_reuse_distance", REUSE_DISTANCE)),
    )


def _either(zero: Mapping[str, Any], name: str, default: int) -> int:
    return zero.get(f"stage3_{name}", zero.get(name, default))  # type: ignore[no-any-return]


def _is_offloaded(section: Any) -> bool:
    return isinstance(section, Mapping) and section.get("device", "none") not in ("none", None)
