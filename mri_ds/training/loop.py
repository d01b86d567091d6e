"""Training: one run folder from shards and configuration to weights.

Everything that happens at intervals (log, picture, checkpoint) stands in `_train`; one weight update stands in `train_step`.
"""

import json
import shutil
import signal
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from mri_ds.config import SCALES, RunConfig, dump_config, load_config, nearest, validate
from mri_ds.data.index import ShardDataset
from mri_ds.data.loader import workers_per_rank
from mri_ds.data.manifest import Manifest, read_manifest
from mri_ds.data.order import make_order
from mri_ds.data.preprocess import dataset_intensities, propose
from mri_ds.data.remote import locate
from mri_ds.errors import InputError
from mri_ds.losses import SUBJECT_LOSS
from mri_ds.sample import Batch
from mri_ds.training import distributed, ds_config, heart, launchers, micro_batch, signals
from mri_ds.training.checkpoint import Checkpoints, export, tell_cause
from mri_ds.training.course import Course
from mri_ds.training.engine import build_engine, build_objective
from mri_ds.training.expert_load import ExpertLoad
from mri_ds.training.nonfinite import StepGuard
from mri_ds.training.profile import Profile, parse_steps
from mri_ds.training.replay import write_dump
from mri_ds.training.router_penalty import RouterPenalty
from mri_ds.training.spikes import SpikeWatch
from mri_ds.training.watch import Watch
from mri_ds.training.window import Window

HOW_READ = {"num_workers", "skip_unreadable", "cache_dir", "cache_gib"}  # fields of DataConfig
HOW_RUN = {"timeout_s", "checkpoint_every", "checkpoint_async", "keep_last", "keep_every", "keep_best"}  # of TrainingConfig
HOW_WATCHED = {"log_every", "image_every", "validate_every", "validate_subjects", "max_nonfinite", "wandb"}  # of TrainingConfig


def train(
    config_path: Path | None,
    overrides: list[str],
    scale: str | None,
    ds_config_path: Path,
    data: Path,
    run_dir: Path,
    *,
    ds_overrides: Sequence[str] = (),
    resolve_only: bool = False,
    profile: str = "",
) -> dict[str, Any]:
    """Trains, or goes on from the run folder's last checkpoint, and leaves RUN/model.safetensors.

    `scale` None is taken from the JSON's name. `resolve_only` returns {"run", "ds_config"} as they would be used, without
    touching the network. `profile`: steps to trace, as "20-22". Raises InputError for anything a user can mend before the first
    step.
    """
    parse_steps(profile)  # a wrong one is told before anything is started
    launchers.adopt()
    raw = ds_config.read(ds_config_path, ds_overrides)
    if scale is None:
        scale = ds_config_path.stem
        if scale not in SCALES:
            raise InputError(f"the name {scale!r} is no scale", where=ds_config_path, fix=f"add --scale {{{'|'.join(SCALES)}}}")
    config = load_config(config_path, overrides=overrides, scale=scale)
    address = str(data) if "://" in str(data) or ":/" in str(data) else str(data.resolve())
    data = locate(data, cache_dir=config.data.cache_dir, cache_gib=config.data.cache_gib)
    manifest = read_manifest(data) if not resolve_only or (data / "manifest.json").is_file() else None
    if manifest is not None:
        config = complete(config, manifest, where=data)
    resolved = ds_config.resolve(raw, config, world_size=distributed.world_size(), where=ds_config_path)
    if resolve_only or manifest is None:
        return {"run": config.model_dump(mode="json"), "ds_config": resolved}
    distributed.start(config.training.timeout_s)
    try:
        distributed.tell_world()
        resolved = micro_batch.choose(raw, _first_ranks(resolved), config, run_dir)
        launch = {"scale": scale, "data": address, "ds_config": raw}
        with micro_batch.noting_out_of_memory(raw, resolved, run_dir):
            result = _train(config, resolved, manifest, data, run_dir, launch=launch, profile=profile)
    except RuntimeError:
        tell_cause()
        raise
    except signals.Stopped:
        distributed.stop()
        raise  # after any other exception peers may be lost, and saying good-bye to them could take for ever
    distributed.stop()
    return result


def _first_ranks(resolved: dict[str, Any]) -> dict[str, Any]:
    """What rank 0 resolved, on every rank: nodes of two kinds must not differ in precision."""
    text = torch.frombuffer(bytearray(json.dumps(resolved).encode()), dtype=torch.uint8)
    told: dict[str, Any] = json.loads(bytes(distributed.from_first_rank({"json": text})["json"].tolist()))
    return told


def complete(config: RunConfig, manifest: Manifest, *, where: Path) -> RunConfig:
    """Fills what the data decides: tasks with their statistics, channels, spacing, patch, token stride.

    A task of the YAML must exist in the shards; without any, all of the shards' tasks are trained.
    """
    for name in config.tasks:
        if name not in manifest.tasks:
            raise InputError(f"task {name!r} is not in the shards", where=where, fix=nearest(name, list(manifest.tasks)))
    names = list(config.tasks) or list(manifest.tasks)
    raw = config.model_dump(mode="json")
    raw["tasks"] = {name: manifest.tasks[name].model_dump(mode="json") for name in names}
    raw["model"]["in_channels"] = len(manifest.channels)
    given = {key: raw["data"][key] for key in ("spacing_mm", "patch") if raw["data"][key] != "auto"}
    for key, value in propose(manifest, **given).items():
        section = "model" if key in raw["model"] else "data"
        if raw[section][key] == "auto":
            raw[section][key] = list(value)
    if config.data.num_workers == "auto":
        raw["data"]["num_workers"] = workers_per_rank(distributed.local_world_size(), beside_gpu=torch.cuda.is_available())
    raw["data"]["intensities"] = [one.model_dump() for one in dataset_intensities(config.data, manifest, where=where)]
    return validate(raw, where=str(where))


def _train(
    config: RunConfig,
    resolved: dict[str, Any],
    manifest: Manifest,
    data: Path,
    run_dir: Path,
    *,
    launch: dict[str, Any],
    profile: str,
) -> dict[str, Any]:
    training, rank = config.training, distributed.rank()
    _prepare_run_folder(run_dir, config, resolved, manifest)
    _keep_launch(run_dir, launch)
    torch.manual_seed(training.seed)  # every rank draws the same weights; DeepSpeed then shards them
    engine = build_engine(build_objective(config), resolved)
    load = ExpertLoad(engine.module, list(config.tasks))
    RouterPenalty(engine.module, z=config.loss.router_z, balance=config.loss.router_balance)
    dataset = ShardDataset(data, "train")
    order = make_order(dataset, config.data, seed=training.seed, global_batch=training.global_batch)
    course = Course(config, dataset, order, micro_batch=resolved["train_micro_batch_size_per_gpu"])
    checkpoints = Checkpoints(engine, run_dir, training)
    spikes = SpikeWatch(training.rollback_deviations)

    def load_state(state: Mapping[str, Any]) -> None:
        course.load_state(state)
        spikes.load_state(state.get("spikes", []))

    def save(step: int) -> None:
        data_state = course.state(step) | {"spikes": spikes.state()}
        checkpoints.save(step, batch=batch, data=data_state, scalars=watch.scalars)

    start = checkpoints.resume(load_state)
    watch = Watch(engine, config, resolved, dataset, run_dir, start_step=start)
    if start:
        watch.say(f"resuming from step {start} of {training.steps} ({run_dir / 'checkpoints'})")
    guard = StepGuard(engine, max_in_row=training.max_nonfinite, dump=partial(write_dump, engine, run_dir))
    profiler = Profile(parse_steps(profile), engine, run_dir)
    saved, batch = start, Batch()  # type: ignore[typeddict-item]  # there is no batch before the first step
    for step in range(start + 1, training.steps + 1):
        asked, has_failed = distributed.maximum(signals.heard(), checkpoints.has_failed)
        if has_failed:
            checkpoints.wait()  # raises, on all ranks after the same step
        if asked:
            if step - 1 > saved:
                save(step - 1)
            checkpoints.wait()
            watch.close()
            _leave(run_dir, signals.signal_of(asked), step - 1)
        heart.progress(step - 1)
        torch.manual_seed(np.random.SeedSequence([training.seed, step, rank]).generate_state(1)[0].item())
        with profiler.step(step):
            losses, batch = train_step(engine, course.batches(step - 1), watch.window, course.hear, guard.see)
        result = guard.end_step(step)
        course.end_step(step)
        load.balance(rate=0.0 if result.is_skipped else training.balance_rate)
        if spikes.is_spike(result.loss):
            checkpoints.wait()
            if back := spikes.roll_back(engine, checkpoints.resume, step):
                watch.say(f"step {step}: the loss jumped to {result.loss:.4g}; going on with the weights of step {back}")
        watch.tell(step, result, losses, load, course.scalars(step), batch)
        if step % training.checkpoint_every == 0 and step < training.steps:
            save(step)
            saved = step
    profiler.close()
    heart.progress(training.steps)
    if start < training.steps:
        save(training.steps)
    export(engine, run_dir)
    checkpoints.wait()
    watch.close()
    return {"run": str(run_dir), "steps": training.steps, "resumed_from": start}


def _leave(run_dir: Path, signum: int, step: int) -> NoReturn:
    """All ranks are here after the same step, which is saved.

    What all of them agree on costs one all-reduce of 4 bytes a step. It stands between steps, where the optimiser has just
    brought all ranks together, so nobody waits in it for a slower one.
    """
    if signum == signal.SIGUSR1 and distributed.rank() == 0:
        signals.ask_for_requeue(run_dir)
    raise signals.Stopped(signum, step)


def train_step(
    engine: Any,
    batches: Iterator[Batch],
    window: Window,
    hear: Callable[[torch.Tensor], None] = lambda losses: None,
    see: Callable[[Batch, float], None] = lambda batch, loss: None,
) -> tuple[dict[str, float], Batch]:
    """One weight update, made of `gradient_accumulation_steps` micro-batches; mean losses of this rank, and the last batch.

    `hear` is given the losses (B,) of each micro-batch's subjects, `see` each micro-batch and its loss before the engine steps.
    """
    sums: dict[str, float] = defaultdict(float)
    count = engine.gradient_accumulation_steps()
    for _ in range(count):
        with window.time("data"):
            batch = next(batches)
        losses = window.forward(partial(engine, distributed.to_device(batch)), tuple(batch["image"].shape))
        with window.time("backward"):
            engine.backward(losses["loss"])
        see(batch, float(losses["loss"].detach()))
        with window.time("step"):
            engine.step()  # weights move only on the last micro-batch
        if SUBJECT_LOSS in losses:
            hear(losses.pop(SUBJECT_LOSS))
        for key, value in losses.items():
            sums[key] += float(value.detach()) / count
    window.steps += 1
    return dict(sums), batch


def _prepare_run_folder(run_dir: Path, config: RunConfig, resolved: dict[str, Any], manifest: Manifest) -> None:
    """Writes the merged configuration; refuses a folder that holds another run's."""
    path, text = run_dir / "config.yaml", dump_config(config)
    if distributed.rank() == 0:
        if path.is_file() and (run_dir / "checkpoints").is_dir() and _science(load_config(path)) != _science(config):
            raise InputError("holds a run of another configuration", where=run_dir, fix="choose another --run, or remove it")
        run_dir.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        (run_dir / "ds_config.json").write_text(json.dumps(resolved, indent=2) + "\n")
        (run_dir / "manifest.json").write_text(manifest.model_dump_json(indent=2) + "\n")
        signals.forget_requeue(run_dir)
        (run_dir / "model.safetensors").unlink(missing_ok=True)
        if shutil.disk_usage(run_dir).free < 2**30:
            raise InputError("less than 1 GiB of disk is free", where=run_dir, fix="free some, or choose another --run")
    distributed.barrier()


def _keep_launch(run_dir: Path, launch: dict[str, Any]) -> None:
    """For `mri-ds train --resume RUN`, which reads it in cli/resume.py."""
    if distributed.rank() == 0:
        given = {key: launch[key] for key in ("scale", "data")}
        (run_dir / "launch.json").write_text(json.dumps(given) + "\n")
        (run_dir / "ds_config.given.json").write_text(json.dumps(launch["ds_config"], indent=2) + "\n")


def _science(config: RunConfig) -> dict[str, Any]:
    """What a run may not change on its way. How its data are read may, and its checkpoints kept: the batches stay the same."""
    raw = config.model_dump(mode="json")
    for section, free in (("data", HOW_READ), ("training", HOW_RUN | HOW_WATCHED)):
        raw[section] = {key: value for key, value in raw[section].items() if key not in free}
    return raw
