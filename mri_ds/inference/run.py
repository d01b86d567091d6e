"""A trained network, or several that are averaged, ready to predict.

In: what training, `mri-ds convert` and cross-validation write.  Out: a Run, its network in evaluation mode on one device, with
everything that the preparation of an image needs.

| path                                    | what is loaded                                                                   |
|-----------------------------------------|----------------------------------------------------------------------------------|
| RUN                                     | model.safetensors; else the newest of model-stepNNNNNN.safetensors and checkpoints |
| RUN/checkpoints/stepNNNNNN              | that checkpoint of any number of ranks, which takes DeepSpeed to read            |
| RUN/NAME.safetensors                    | these weights                                                                    |
| a folder of fold_0, fold_1, ...         | all of them, averaged                                                            |
"""

import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mri_ds.config import RunConfig, TaskConfig, load_config
from mri_ds.data.manifest import Manifest
from mri_ds.data.preprocess import settings
from mri_ds.errors import InputError
from mri_ds.inference.calibration import Calibration, read_calibration
from mri_ds.inference.cleanup import read_cleanup
from mri_ds.inference.ensemble import Ensemble, check_flips
from mri_ds.mri_network import BaseMRINet

LOG = logging.getLogger(__name__)
MISFIT = "use the config.yaml that this training wrote, or train again with the present version"
UNFINISHED = "training has not finished; run the same train command again to resume"
WEIGHTS = "model.safetensors"
Source = str | Path


@dataclass(frozen=True)
class Run:
    """`channels` are in the order that the network takes them; `config` has no "auto" left.

    `net` averages `num_members` networks that see the same prepared image; `others` are those that see it prepared otherwise.
    """

    net: nn.Module  # (B, C, D, H, W), (B, 3) mm -> {task: tensor}, as BaseMRINet
    config: RunConfig
    channels: list[str]
    device: torch.device
    digest: str = ""  # of weights and config: tells two runs apart
    num_members: int = 1
    others: tuple["Run", ...] = ()
    calibration: Calibration = field(default_factory=Calibration)
    keep_largest: dict[str, list[str]] = field(default_factory=dict)  # see cleanup.py
    flip_axes: tuple[int, ...] = ()  # over which `net` averages


def load_run(
    checkpoint: Source | Sequence[Source],
    device: str | torch.device | None = None,
    *,
    flip_axes: Sequence[int] | None = None,
    coverage: float | None = None,
) -> Run:
    """Loads the weights of a run, of one of its checkpoints, or of several to be averaged; onto the GPU where there is one.

    checkpoint: a path as in the table above, or several, which are averaged. flip_axes: axes (0 left-right, 1 posterior-anterior,
    2 inferior-superior) over whose flips predictions are averaged; by default the config's predict.flip_axes.
    coverage: how often, 0..1, intervals and sets shall hold the truth; by default what the run was calibrated for.
    Raises InputError for a folder that is not a run, a run that has no weights yet, weights that are not their config's, runs of
    different channels or tasks, a left-right flip where tasks tell sides apart, and a coverage that was not calibrated.

    >>> run = load_run("runs/first", flip_axes=[0])              # doctest: +SKIP
    >>> run.channels                                                # doctest: +SKIP
    ['T1w']
    """
    given = [Path(path) for path in ([checkpoint] if isinstance(checkpoint, str | Path) else checkpoint)]
    if not given:
        raise InputError("no checkpoint given", fix="give the folder that `mri-ds train` wrote")
    paths = [member for path in given for member in (fold_folders(path) or [path])]
    target = torch.device(device) if device is not None else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    members = [_load_one(path, target) for path in paths]
    for path, member in zip(paths[1:], members[1:]):
        _check_alike(member, path, members[0], paths[0])
    tasks = {name: _merge([member.config.tasks[name] for member in members]) for name in members[0].config.tasks}
    first = members[0].config.model_copy(update={"tasks": tasks})
    axes = check_flips(first.predict.flip_axes if flip_axes is None else flip_axes, tasks)
    groups: dict[str, list[Run]] = {}
    for member in members:
        groups.setdefault(repr((settings(member.config.data), member.config.data.patch)), []).append(member)
    head, *others = [_together(group, tasks, axes) for group in groups.values()]
    digests = "".join(member.digest for member in members)
    home = given[0] if len(given) == 1 and given[0].is_dir() else None
    return replace(
        head,
        config=head.config.model_copy(update={"tasks": tasks}),
        others=tuple(others),
        digest=digests if len(members) == 1 else hashlib.sha256(digests.encode()).hexdigest()[:16],
        calibration=(read_calibration(home) if home else Calibration()).at(coverage),
        keep_largest=read_cleanup(home, tasks) if home else {},
    )


def fold_folders(path: Path) -> list[Path]:
    """The runs of a cross-validation, in the order of their numbers; [] where `path` is no such folder."""
    if not path.is_dir() or (path / "config.yaml").is_file():
        return []
    found = {int(match[1]): fold for fold in path.iterdir() if (match := re.fullmatch(r"fold[_-]?(\d+)", fold.name))}
    return [found[number] for number in sorted(found) if found[number].is_dir()]


def _load_one(path: Path, device: torch.device) -> Run:
    home = path.parent if path.is_file() else path.parent.parent if path.parent.name == "checkpoints" else path
    config_path = _existing(home, "config.yaml", "give the folder that `mri-ds train` wrote")
    config = load_config(config_path)
    channels = _read_channels(_existing(home, "manifest.json", "run the same train command again"))
    weights, digest, where = _weights(path, home)
    net = BaseMRINet(config.model, config.tasks)
    try:
        net.load_state_dict(weights, strict=True)
    except RuntimeError as err:  # torch names every missing, unexpected and misshapen weight
        raise InputError(f"does not fit {config_path}: {_first_problem(err)}", where=where, fix=MISFIT) from None
    digest = hashlib.sha256((digest + config.model_dump_json()).encode()).hexdigest()[:16]
    return Run(net.to(device).eval(), config, channels, device, digest)


def _weights(path: Path, home: Path) -> tuple[dict[str, Tensor], str, Path]:
    """Weights by BaseMRINet's own names, a digest of them, and the file that they are of."""
    if path.is_file():
        return _read(path)
    if path == home and (home / WEIGHTS).is_file():
        return _read(home / WEIGHTS)
    steps = {_step(file): file for file in home.glob("model-step*.safetensors") if _step(file) is not None}
    sharded = {_step(folder): folder for folder in (home / "checkpoints").glob("step*") if (folder / "manifest.json").is_file()}
    step = _step(path) if path != home else max((s for s in {*steps, *sharded} if s is not None), default=None)
    if step is None or step not in {*steps, *sharded}:
        _existing(home, WEIGHTS, UNFINISHED)
    LOG.warning("%s: predicting with the weights of step %s", home, step)
    return _read(steps[step]) if step in steps else _converted(home, step)  # type: ignore[arg-type]


def _converted(home: Path, step: int) -> tuple[dict[str, Tensor], str, Path]:
    """A sharded checkpoint's weights; kept beside it for the next time where the folder takes them."""
    from mri_ds.training.checkpoint.convert import convert_run

    if os.access(home, os.W_OK):
        return _read(Path(convert_run(home, "safetensors", step=step)["out"]))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / f"model-step{step:06d}.safetensors"
        return _read(Path(convert_run(home, "safetensors", step=step, out=out)["out"]))


def _step(path: Path) -> int | None:
    match = re.fullmatch(r"(?:model-)?step(\d{6,})(?:\.safetensors)?", path.name)
    return int(match[1]) if match else None


def _read(path: Path) -> tuple[dict[str, Tensor], str, Path]:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return load_file(path), digest, path
    except SafetensorError as err:
        raise InputError(f"is not a safetensors file ({err})", where=path, fix=UNFINISHED) from None


def _together(group: Sequence[Run], tasks: dict[str, TaskConfig], axes: list[int]) -> Run:
    """Runs of one preparation as one, which averages them and the flips."""
    if len(group) == 1 and not axes:
        return group[0]
    net = Ensemble([member.net for member in group], tasks, flip_axes=axes)
    return replace(group[0], net=net.eval(), num_members=len(group), flip_axes=tuple(axes))


def _check_alike(run: Run, path: Path, first: Run, first_path: Path) -> None:
    fix = "average runs of one training set and one `tasks:`"
    if run.channels != first.channels:
        what = f"takes the channels {', '.join(run.channels)}, and {first_path} {', '.join(first.channels)}"
        raise InputError(what, where=path, fix=fix)

    def told(one: Run) -> dict[str, tuple[str, list[str], str]]:
        return {name: (task.kind, task.classes, task.unit) for name, task in one.config.tasks.items()}

    if told(run) != told(first):
        raise InputError(f"learned other tasks or classes than {first_path}", where=path, fix=fix)


def _merge(tasks: Sequence[TaskConfig]) -> TaskConfig:
    """What folds saw of one task, for the rule of small parts: the smallest part of any, present always if in all."""
    if len(tasks) == 1:
        return tasks[0]
    seen = {
        key: [min(column) for column in zip(*(getattr(task, key) for task in tasks))]
        for key in ("smallest_part_ml", "class_presence")
    }
    return tasks[0].model_copy(update=seen)


def _existing(folder: Path, name: str, fix: str) -> Path:
    if not folder.is_dir():
        raise InputError("is not a folder", where=folder, fix="give the folder that `mri-ds train` wrote")
    if not (folder / name).is_file():
        raise InputError(f"has no {name}", where=folder, fix=fix)
    return folder / name


def _read_channels(path: Path) -> list[str]:
    try:
        return Manifest.model_validate_json(path.read_bytes()).channels
    except ValidationError as err:
        raise InputError(
            f"is not a manifest: {err.errors()[0]['msg']}", where=path, fix="run the same train command again"
        ) from None


def _first_problem(err: RuntimeError) -> str:
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return lines[1][:200] if len(lines) > 1 else lines[0][:200]
