"""`"train_micro_batch_size_per_gpu": "auto"`: as much of the global batch at once as this device has room for.

It begins with all that a rank has of the global batch. Where memory might not do, it takes the largest micro-batch that the plan
says will fit, tries one forward and backward pass on the device beside a block of the size that ZeRO's states will have, and on
running out of memory goes on with the next smaller divisor. What was found is written to RUN/micro_batch.json, and a run that is
resumed on as many ranks keeps it: the same sums in the same order. The global batch, and so the science, is the same for any of
them; accumulation makes up the rest.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mri_ds.config import RunConfig
from mri_ds.errors import InputError
from mri_ds.training import distributed, ds_config
from mri_ds.training.plan.layout import Layout, layout_of
from mri_ds.training.plan.memory import Memory, memory
from mri_ds.training.plan.parameters import count
from mri_ds.training.plan.suggestion import ROOM
from mri_ds.training.plan.trace import at_micro_batch
from mri_ds.training.room import free_bytes
from mri_ds.training.trial import Trial, shortage, speaks_of_memory

RECORD = "micro_batch.json"
PLENTY = 10  # times a generous guess: with so much room nothing is planned or tried


def choose(raw: Mapping[str, Any], resolved: dict[str, Any], config: RunConfig, run_dir: Path) -> dict[str, Any]:
    """`resolved` with a micro-batch that fits, where `raw` says "auto". Every rank must call it, after distributed.start().

    Raises InputError where not even one subject fits.
    """
    if raw.get("train_micro_batch_size_per_gpu", "auto") != "auto":
        return resolved
    world, total = distributed.world_size(), config.training.global_batch
    own = total // world
    kept = _recorded(run_dir, world, total)
    if kept is not None and own % kept == 0:
        return _with(raw, config, kept)
    tried: list[dict[str, Any]] = []
    micro = own
    if _agree(_is_scarce(config, own)):
        layout = layout_of(resolved, nodes=1, slots=world)
        micro = _agree_on(_planned(config, layout, own))
        while short := next((text for text in distributed.say(_shortage(config, layout, micro)) if text), ""):
            tried.append({"micro_batch": micro, "outcome": short})
            if distributed.rank() == 0:
                print(f"micro-batch {micro} does not fit: {short}", file=sys.stderr, flush=True)
            if micro == 1:
                fix = "lower data.patch, recompute (activation_checkpointing.level: block), or shard more (ZeRO-3, more ranks)"
                raise InputError("one subject does not fit into the device's memory", fix=fix)
            micro = smaller(own, micro)
    _record(run_dir, {"micro_batch": micro, "ranks": world, "global_batch": total, "tried": tried})
    return _with(raw, config, micro)


@contextmanager
def noting_out_of_memory(raw: Mapping[str, Any], resolved: Mapping[str, Any], run_dir: Path) -> Iterator[None]:
    """Around the steps: a step that runs out of memory all the same makes the next start take a smaller micro-batch."""
    try:
        yield
    except (RuntimeError, MemoryError) as err:
        micro, accumulation = resolved["train_micro_batch_size_per_gpu"], resolved["gradient_accumulation_steps"]
        if not speaks_of_memory(err) or raw.get("train_micro_batch_size_per_gpu", "auto") != "auto" or micro == 1:
            raise
        then = smaller(micro * accumulation, micro)
        world, total = distributed.world_size(), resolved["train_batch_size"]
        tried = [{"micro_batch": micro, "outcome": "out of memory while training"}]
        _record(run_dir, {"micro_batch": then, "ranks": world, "global_batch": total, "tried": tried}, by_any=True)
        raise RuntimeError(f"out of memory at micro-batch {micro}: start again, and it goes on with {then}") from err


def smaller(own: int, micro: int) -> int:
    """The next divisor of `own` that is at most half of `micro`."""
    return next(n for n in range(max(1, micro // 2), 0, -1) if own % n == 0)


def _is_scarce(config: RunConfig, micro: int) -> bool:
    """A guess at several times of what the full-resolution features and logits need, against what is free."""
    assert config.data.patch != "auto"
    logits = sum(task.num_outputs for task in config.tasks.values() if task.kind == "segmentation")
    voxels = micro * config.data.patch[0] * config.data.patch[1] * config.data.patch[2]
    need = voxels * 4 * (64 * config.model.stem_channels + 32 * logits) + 20 * count(config).total
    return need * PLENTY > free_bytes()


def _states(config: RunConfig, layout: Layout, micro: int) -> Memory:
    traced = at_micro_batch(micro, config, precision=layout.precision, recompute=layout.recompute)
    return memory(count(config), layout, traced)  # buckets in full: an address-space limit counts what is not yet written, too


def _planned(config: RunConfig, layout: Layout, own: int) -> int:
    room = ROOM * free_bytes()
    fitting = (n for n in range(own, 0, -1) if own % n == 0 and _states(config, layout, n).peak <= room)
    return next(fitting, 1)


def _shortage(config: RunConfig, layout: Layout, micro: int) -> str:
    """Tries one pass of the whole network on this device, beside as much as ZeRO will keep; "" where it fits."""
    held = _states(config, layout, micro)
    weights = layout.itemsize * count(config).total
    kept = held.weights + held.gradients + held.optimizer + held.bucket - weights
    if kept + held.gathered < 0:  # sharding is what makes it fit: a whole network cannot be tried on one device
        return ""
    beside = kept + held.gathered + held.sending
    after = max(0, held.update - held.gathered - held.sending)
    return shortage(Trial(config.model_dump_json(), micro, layout.precision, layout.recompute, held=beside, update=after))


def _agree(value: bool) -> bool:
    """True on every rank where it is on any."""
    return bool(distributed.maximum(int(value))[0])


def _agree_on(value: int) -> int:
    return int(distributed.gather(torch.tensor([float(value)])).min())


def _with(raw: Mapping[str, Any], config: RunConfig, micro: int) -> dict[str, Any]:
    return ds_config.resolve({**raw, "train_micro_batch_size_per_gpu": micro}, config, world_size=distributed.world_size())


def _recorded(run_dir: Path, world: int, total: int) -> int | None:
    """What an earlier start of this run found, on as many ranks and for the same global batch."""
    try:
        told = json.loads((run_dir / RECORD).read_text())
        same = told["ranks"] == world and told["global_batch"] == total
        return int(told["micro_batch"]) if same and int(told["micro_batch"]) > 0 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _record(run_dir: Path, told: dict[str, Any], *, by_any: bool = False) -> None:
    if distributed.rank() == 0 or by_any:
        run_dir.mkdir(parents=True, exist_ok=True)
        part = run_dir / f"{RECORD}.{distributed.rank()}.part"
        part.write_text(json.dumps(told, indent=2) + "\n")
        os.replace(part, run_dir / RECORD)
