"""Saving and resuming one run: which of the package's parts comes when."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor

import mri_ds.training.checkpoint.folder as on_disk
from mri_ds.config import TrainingConfig, nearest
from mri_ds.errors import CorruptError, InputError
from mri_ds.sample import Batch
from mri_ds.training import distributed
from mri_ds.training.checkpoint.continuity import choose, departure, measure
from mri_ds.training.checkpoint.digest import differences, digests
from mri_ds.training.checkpoint.parts import places
from mri_ds.training.checkpoint.restore import buffers, check_convertible, describe, layout, restore
from mri_ds.training.checkpoint.shards import Shards, only_known_classes
from mri_ds.training.checkpoint.universal import Universal, convert
from mri_ds.training.checkpoint.writer import Writer


class Checkpoints:
    """Those of one run of one engine."""

    def __init__(self, engine: Any, run_dir: Path, training: TrainingConfig) -> None:
        self.engine, self.run_dir, self.training = engine, run_dir, training
        self.shards, self.writer = Shards.of(engine), Writer()
        self.probe: dict[str, Tensor] = {}

    def save(
        self,
        step: int,
        *,
        batch: Batch,
        data: Mapping[str, Any],
        scalars: Mapping[str, float] | None = None,
        wait: bool = False,
    ) -> None:
        """Checkpoints the run after `step` steps; training may go on at once. Every rank must call it.

        `batch`: the last one; the first call keeps a subject of it for the continuity gate. `data`: where the batches stand, see
        training.course.Course.state. `scalars`: the newest of the log, to find the best by.
        `wait`: return only when it is complete. Raises RunError where this one, or with `wait` False the one before, cannot be
        written.
        """
        self.writer.wait()
        self._check_best(scalars or {})
        self.probe = self.probe or choose(batch)
        state = {
            "step": step,
            "data": dict(data),
            "engine": describe(self.engine),
            "probe": measure(self.engine, self.probe),
            "digests": digests(self.engine),
            "shapes": {place.own: place.shape for place in places(self.engine.module).values()},
        }
        part = on_disk.folder_of(self.run_dir, step).with_suffix(".part")
        if distributed.rank() == 0:
            shutil.rmtree(part, ignore_errors=True)  # what a killed run left
        distributed.barrier()
        self.engine.save_checkpoint(str(part.parent), tag=part.name, save_latest=False)
        files = self.shards.take()
        if distributed.rank() == 0:
            files[on_disk.STATE] = json.dumps(state).encode()
            files[on_disk.TENSORS] = save(buffers(self.engine) | {f"probe/{k}": v for k, v in self.probe.items()})
        facts = {"step": step, "scalars": dict(scalars or {})}
        self.writer.submit(part, files, lambda written: self._commit(part, written, facts))
        if wait or not self.training.checkpoint_async:
            self.writer.wait()

    def wait(self) -> None:
        """Until the last one is complete. Raises RunError where it cannot be written."""
        self.writer.wait()

    @property
    def has_failed(self) -> bool:
        """Whether the last one could not be written, as far as this rank knows by now. Ranks get to know one after another."""
        return self.writer.has_failed

    def resume(self, check_data: Callable[[Mapping[str, Any]], None]) -> int:
        """Loads the newest complete checkpoint, if any, and returns its step (0: nothing to resume).

        `check_data` hears what `save` was told of the data, and raises InputError where it is not the same any more.
        Raises CorruptError for a file that is not what was written.
        """
        if distributed.rank() == 0:
            on_disk.remove_leftovers(self.run_dir)
        distributed.barrier()
        found = on_disk.complete(self.run_dir)
        if not found:
            return 0
        folder = found[-1]
        _verify(folder)
        state = on_disk.read_state(folder)
        check_data(state["data"])
        tensors = load_file(folder / on_disk.TENSORS)
        self.probe = {name.removeprefix("probe/"): value for name, value in tensors.items() if name.startswith("probe/")}
        self._load(folder, state, tensors)
        _check_continuity(self.engine, folder, state, self.probe)
        return int(state["step"])

    def _load(self, folder: Path, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        told, now = state["engine"]["layout"], layout(self.engine)
        if now["offload"][0] == "nvme":  # seen: the weights stay those of the new engine until its first step
            raise InputError(
                "DeepSpeed 0.19 does not restore the weights of a run whose moments are on NVMe",
                where=folder,
                fix="train such a run in one go, or offload to the cpu; to begin anew choose another --run",
            )
        if told == now:
            with only_known_classes():
                self.engine.load_checkpoint(str(folder.parent), tag=folder.name)
            return
        check_convertible(told, now, folder)
        universal = folder.with_suffix(".universal")
        try:
            distributed.by_first_rank(lambda: convert(folder, universal, zero_stage=told["zero_stage"]))
            restore(self.engine, Universal(universal), state["engine"], tensors)
            distributed.barrier()
        finally:
            if distributed.rank() == 0:
                shutil.rmtree(universal, ignore_errors=True)

    def _check_best(self, scalars: Mapping[str, float]) -> None:
        key = self.training.keep_best.removeprefix("-")
        if key and scalars and key not in scalars:
            raise InputError(f"training.keep_best = {key!r} is no scalar of the log", fix=nearest(key, list(scalars)))

    def _commit(self, part: Path, files: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        t = self.training
        on_disk.commit(part, files, facts)
        on_disk.retain(self.run_dir, last=t.keep_last, every=t.keep_every, best_by=t.keep_best)


def _check_continuity(engine: Any, folder: Path, state: Mapping[str, Any], probe: Mapping[str, Tensor]) -> None:
    """Raises CorruptError where the engine is not what was saved, see continuity.py; every rank alike."""
    saved, loaded = state["digests"], digests(engine)
    wrong = differences(saved, loaded) if saved and loaded else []
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise on_disk.refuse(folder, f"not what was saved: {'; '.join(wrong[:3])}{more}")
    departed = departure(state["probe"], measure(engine, probe))
    if departed:
        raise on_disk.refuse(folder, departed)


def _verify(folder: Path) -> None:
    """Every rank checks its share of the files; all raise the same."""
    try:
        finding = on_disk.verify(folder, rank=distributed.rank(), world_size=distributed.world_size())
    except CorruptError as err:
        finding = str(err)
    findings = [text for text in distributed.say(finding) if text]
    if findings:
        raise on_disk.refuse(folder, findings[0])
