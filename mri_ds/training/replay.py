"""A step that went wrong, kept so that one process can look at it again without DeepSpeed.

RUN/nonfinite/step000123/ holds dump.json (which step, why, the seeds, each micro-batch's subjects and loss), one safetensors
file for each rank's micro-batch, and the run's config.yaml and manifest.json with the weights as they stood: model.safetensors
under the net's own names, as any run has it (so `mri-ds predict` reads the folder too), and objective.safetensors for what is
learned beside the net.
In: that folder.  Out: for each micro-batch its loss now and then, and the first module that gave a value which is not finite,
on the way forward or back. Weights are cast to the run's precision, and dice thrown from the rank's own seed.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mri_ds.config import load_config
from mri_ds.errors import InputError
from mri_ds.losses import SUBJECT_LOSS
from mri_ds.sample import Batch
from mri_ds.training import distributed
from mri_ds.training.checkpoint import export
from mri_ds.training.engine import build_objective
from mri_ds.training.nonfinite import MicroBatch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MAX_NAMES = 5  # of parameters that are told


def write_dump(engine: Any, run_dir: Path, step: int, micro_batches: Sequence[MicroBatch], facts: Mapping[str, Any]) -> Path:
    """RUN/nonfinite/stepNNNNNN of a step that moved nothing, so the weights are those it was computed with.

    Every rank calls it.
    """
    folder, rank = run_dir / "nonfinite" / f"step{step:06d}", distributed.rank()
    if rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in ("config.yaml", "manifest.json"):
            shutil.copyfile(run_dir / name, folder / name)
    distributed.barrier()
    own = {"torch_seed": torch.initial_seed(), "micro_batches": []}
    for number, micro in enumerate(micro_batches):
        file = f"rank{rank:04d}-{number}.safetensors"
        save_file({name: value.detach().cpu().contiguous().clone() for name, value in _flat(micro.batch).items()}, folder / file)
        told = {"file": file, "subject_ids": micro.batch.get("subject_id", []), "loss": _text(micro.loss)}
        own["micro_batches"].append(told)  # type: ignore[attr-defined]
    ranks = distributed.gather_json(own)
    export(engine, folder)
    rest = _beside_net(engine)
    if rank == 0:
        if rest:
            save_file(rest, folder / "objective.safetensors")
        dtype = str(next(engine.module.parameters()).dtype).removeprefix("torch.")
        told = {"step": step, "dtype": dtype, "accumulation": engine.gradient_accumulation_steps(), **facts, "ranks": ranks}
        (folder / "dump.json").write_text(json.dumps(told, indent=1, allow_nan=False) + "\n")  # last: a dump with it is whole
    distributed.barrier()
    return folder


def replay(folder: Path, *, progress: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
    """Runs the micro-batches of a dump again, those of ranks that had a bad loss, or of all where only the gradient was bad.

    {"step", "reason", "reproduced", "weights_not_finite": [names], "micro_batches": [{"rank", "number", "subject_ids",
    "loss_then", "loss", "subject_losses": {id: loss}, "input_not_finite": [names], "first_forward", "first_backward": module or
    None,
    "gradients_not_finite": [names]}]}. Raises InputError for a folder that is no dump, or whose files do not fit.
    """
    told = _read(folder / "dump.json")
    objective = _objective(folder).to(distributed.device(), DTYPES[told["dtype"]])
    for module in objective.modules():
        if hasattr(module, "e_score_correction_bias"):  # training keeps it in float32, see expert_parallel.install_expert_product
            module.e_score_correction_bias = module.e_score_correction_bias.float()
    bad = [name for name, value in objective.state_dict().items() if value.is_floating_point() and not value.isfinite().all()]
    is_bad = [any(not math.isfinite(float(m["loss"])) for m in rank["micro_batches"]) for rank in told["ranks"]]
    chosen = [(r, rank) for r, rank in enumerate(told["ranks"]) if is_bad[r] or not any(is_bad)]
    total, found = sum(len(rank["micro_batches"]) for _, rank in chosen), []
    for r, rank in chosen:
        torch.manual_seed(rank["torch_seed"])
        for number, micro in enumerate(rank["micro_batches"]):
            batch = _read_batch(folder / micro["file"])
            result = _run(objective, batch, micro["subject_ids"], scale=told["loss_scale"] / told["accumulation"])
            found.append({"rank": r, "number": number, "subject_ids": micro["subject_ids"], "loss_then": micro["loss"], **result})
            progress(len(found), total)
    reproduced = any(not math.isfinite(float(m["loss"])) or m["gradients_not_finite"] for m in found)
    kept = {key: told[key] for key in ("step", "reason", "dtype")}
    return {"dump": str(folder), **kept, "reproduced": reproduced, "weights_not_finite": bad[:MAX_NAMES], "micro_batches": found}


def _run(objective: nn.Module, batch: Batch, subject_ids: list[str], *, scale: float) -> dict[str, Any]:
    """One micro-batch forward and back."""
    batch = distributed.to_device(batch)
    first: dict[str, str] = {}
    objective.zero_grad(set_to_none=True)
    with _watched(objective, first):
        losses = objective(batch)
        (scale * losses["loss"].float()).backward()
    gradients = [name for name, p in objective.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    of_subjects = losses[SUBJECT_LOSS].float().tolist() if SUBJECT_LOSS in losses else []
    return {
        "loss": _text(float(losses["loss"].detach())),
        "subject_losses": {name: _text(value) for name, value in zip(subject_ids, of_subjects, strict=False)},
        "input_not_finite": [name for name, value in _flat(batch).items() if not _is_finite(value)],
        "first_forward": first.get("forward"),
        "first_backward": first.get("backward"),
        "gradients_not_finite": gradients[:MAX_NAMES],
    }


@contextmanager
def _watched(objective: nn.Module, first: dict[str, str]) -> Iterator[None]:
    """While it lasts: first["forward"] is the first module with a result that is not finite; its parts come before it.

    first["backward"] is the module into whose input the first gradient came back that is not finite: what happens between that
    module's input and the loss made it.
    """
    handles = []

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            if "forward" not in first and not all(map(_is_finite, _tensors(out))):
                first["forward"] = name

        return hook

    def before(name: str) -> Callable[..., None]:
        def told(gradient: Tensor) -> None:
            if "backward" not in first and not _is_finite(gradient):
                first["backward"] = name

        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            for value in _tensors([args, kwargs]):
                if value.requires_grad:
                    value.register_hook(told)

        return hook

    for name, module in objective.named_modules():
        handles += [module.register_forward_hook(after(name or "objective"))]
        handles += [module.register_forward_pre_hook(before(name or "objective"), with_kwargs=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _beside_net(engine: Any) -> dict[str, Tensor]:
    """What is learned outside `net`, such as task weights, unsharded and in float32. Every rank must call it."""
    from deepspeed.utils import safe_get_full_fp32_param

    named = [(name, p) for name, p in engine.module.named_parameters() if not name.startswith("net.")]
    full = {name: (p, safe_get_full_fp32_param(p)) for name, p in named}
    return {name: (p if value is None else value).detach().float().cpu().clone() for name, (p, value) in full.items()}


def _objective(folder: Path) -> nn.Module:
    objective = build_objective(load_config(folder / "config.yaml"))
    try:
        state = {f"net.{name}": value for name, value in load_file(folder / "model.safetensors").items()}
        if (folder / "objective.safetensors").is_file():
            state |= load_file(folder / "objective.safetensors")
        objective.load_state_dict(state, strict=True)
    except (OSError, SafetensorError, RuntimeError) as err:
        what = str(err).splitlines()[0]
        raise InputError(f"its weights cannot be read: {what}", where=folder, fix="give a folder that training wrote") from None
    return objective.train()


def _read(path: Path) -> dict[str, Any]:
    fix = "give RUN/nonfinite/stepNNNNNN, as the run's last message names it"
    try:
        told = json.loads(path.read_text())
        missing = {"step", "reason", "dtype", "accumulation", "loss_scale", "ranks"} - set(told)
    except OSError:
        raise InputError("is no dump of a step: it has no dump.json", where=path.parent, fix=fix) from None
    except (ValueError, TypeError):
        raise InputError("is not the JSON of a dump", where=path, fix=fix) from None
    if missing or told["dtype"] not in DTYPES:
        raise InputError(f"is not whole: {', '.join(sorted(missing)) or told['dtype']}", where=path, fix=fix)
    return told  # type: ignore[no-any-return]


def _flat(batch: Batch) -> dict[str, Tensor]:
    """targets and mask become "targets/TASK" and "mask/TASK"; subject ids are text and stay out."""
    by_task = {"targets": batch["targets"], "mask": batch["mask"]}
    parts = {f"{key}/{task}": value for key, tensors in by_task.items() for task, value in tensors.items()}
    return {"image": batch["image"], "spacing_mm": batch["spacing_mm"], **parts}


def _read_batch(path: Path) -> Batch:
    try:
        flat = load_file(path)
        by_task = {
            key: {n.partition("/")[2]: x for n, x in flat.items() if n.startswith(key + "/")} for key in ("targets", "mask")
        }
        return Batch(image=flat["image"], spacing_mm=flat["spacing_mm"], targets=by_task["targets"], mask=by_task["mask"])
    except (OSError, SafetensorError, KeyError) as err:
        raise InputError(f"is no batch: {err}", where=path, fix="copy the dump's folder whole") from None


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [t for name, item in value.items() if name != SUBJECT_LOSS for t in _tensors(item)]  # NaN there is "no label"
    return [t for item in value for t in _tensors(item)] if isinstance(value, list | tuple) else []


def _is_finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(value.isfinite().all())


def _text(value: float) -> float | str:
    """JSON has no NaN: "nan", "inf" or "-inf" instead, which float() reads."""
    return value if math.isfinite(value) else str(value)
