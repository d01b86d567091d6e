"""DeepSpeed's own sharded checkpoint, written through our writer and read without trusting it.

DeepSpeed decides what is saved (weights, moments, schedule, loss scale; one file or more per rank) and asks the engine's
`checkpoint_engine` to save and load each file. `Shards` takes that place: saving copies, loading unpickles only what a
checkpoint of DeepSpeed is made of.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mri_ds.training.checkpoint.writer import snapshot


class Shards:
    """The part of DeepSpeed's CheckpointEngine that its engine calls (deepspeed/runtime/checkpoint_engine)."""

    name = "Shards"

    def __init__(self) -> None:
        self._taken: dict[str, Any] = {}

    @classmethod
    def of(cls, engine: Any) -> "Shards":
        """Those of `engine`, put in place at the first call."""
        if not isinstance(engine.checkpoint_engine, cls):
            engine.checkpoint_engine = cls()
            engine._copy_recovery_script = lambda save_path: None  # zero_to_fp32.py cannot read AutoEP's: `mri-ds convert` can
        return engine.checkpoint_engine  # type: ignore[no-any-return]

    def take(self) -> dict[str, Any]:
        """File name -> copied content of what was saved since the last call."""
        taken, self._taken = self._taken, {}
        return taken

    def save(self, state_dict: Any, path: str) -> None:
        self._taken[os.path.basename(path)] = snapshot(state_dict)

    def load(self, path: str, map_location: Any = None) -> Any:
        return load_trusting_nothing(Path(path), map_location=map_location)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        os.makedirs(path, exist_ok=exist_ok)

    def create(self, info: Any) -> None: ...

    def commit(self, info: Any) -> bool:
        return True

    def is_data_parallel_writer(self, dp_rank: int) -> bool:
        return dp_rank == 0

    def is_decoupled(self) -> bool:
        return False

    def preserves_storage_sharing(self) -> bool:
        return False  # no view drags its whole storage along: `snapshot` makes them dense

    def cleanup(self) -> None: ...


def load_trusting_nothing(path: Path, *, map_location: Any = "cpu") -> Any:
    """torch.load of plain data, tensors and the few classes of DeepSpeed that its checkpoints hold; any other is an error."""
    with only_known_classes():
        return torch.load(path, map_location=map_location, weights_only=True)


@contextmanager
def only_known_classes() -> Iterator[None]:
    """While it lasts, every torch.load of this process is of that kind, weights_only=False in DeepSpeed's converter included."""
    from deepspeed.runtime.fp16 import loss_scaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    known = [loss_scaler.LossScaler, loss_scaler.DynamicLossScaler, ZeroStageEnum, fragment_address]
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        with torch.serialization.safe_globals(known):
            yield
    finally:
        if before is None:
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before
