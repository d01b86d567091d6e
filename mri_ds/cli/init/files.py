"""The files of `mri-ds init`, and the commands that follow."""

import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mri_ds.cli import console
from mri_ds.cli.train import DS_CONFIGS
from mri_ds.errors import InputError

if TYPE_CHECKING:
    from mri_ds.config import TaskConfig
    from mri_ds.data.survey import Survey
    from mri_ds.training.proposal.choice import Choice

RUN, HEAD = "run.yaml", "# Science of a run, as `mri-ds init {source}` proposed it. Speed is in {scale}.json.\n"


class Names:
    """Names of classes that a dataset does not tell, and the file that shall."""

    def __init__(self) -> None:
        self.file: Path | None = None
        self.text = ""

    def say(self, file: Path, tasks: Mapping[str, "TaskConfig"]) -> None:
        told = {
            name: {k: v for k, v in task.model_dump(include={"kind", "classes", "unit"}).items() if v}
            for name, task in tasks.items()
        }
        self.file, self.text = file, yaml.safe_dump({"tasks": told}, sort_keys=False)

    def contents(self) -> dict[Path, str]:
        return {self.file: self.text} if self.file is not None else {}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While it lasts, the file is there for the layouts to read; whether it stays is decided with the others."""
        assert self.file is not None
        write(self.contents())
        try:
            yield
        finally:
            self.file.unlink()


def contents(out: Path, found: "Survey", choices: list["Choice"], rest: Mapping[str, Any]) -> dict[Path, str]:
    """{path: text} of run.yaml and of the JSON, named after the scale as `mri-ds train` wants it."""
    from mri_ds.training.proposal.choice import SCALE

    value = {one.key: one.value for one in choices}
    return {out / RUN: _yaml(found, choices, rest), out / f"{value[SCALE]}.json": _json(value)}


def check_overwriting(paths: Mapping[Path, str], *, force: bool, ask: Callable[[Path], bool] | None) -> None:
    """Raises InputError for a file that is there, unless it may be written over. `ask` None: there is nobody to ask."""
    for path in paths:
        if path.exists() and not force and (ask is None or not ask(path)):
            raise InputError("is there already", where=path, fix="give another --out, or --force")


def write(paths: Mapping[Path, str]) -> None:
    for path, text in paths.items():
        console.output_folder(path.parent)
        try:
            path.write_text(text)
        except OSError as err:
            raise InputError(f"cannot be written: {err.strerror}", where=path, fix="make its folder writable") from None


def commands(out: Path, found: "Survey", choices: list["Choice"], written: Mapping[Path, str]) -> list[str]:
    """To be typed one after the other."""
    from mri_ds.training.proposal.choice import RANKS

    value = {one.key: one.value for one in choices}
    source, shards, run = found.where, found.where if found.is_shards else out / "shards", out / "run"
    first = [] if found.is_shards else [["shard", source, "--out", shards], ["lint", shards]]
    paths = list(written)
    train = ["train", "--config", paths[0], "--ds_config", paths[1], "--data", shards, "--run", run]
    evaluate = ["evaluate", "--checkpoint", run, "--data", shards]
    lines = [*first, [*train, *(["--ranks", value[RANKS]] if value[RANKS] > 1 else [])], evaluate]
    return [shlex.join(["mri-ds", *map(str, line)]) for line in lines]


def _yaml(found: "Survey", choices: list["Choice"], rest: Mapping[str, Any]) -> str:
    """Sections of `key: value  # why`; the tasks with their classes."""
    from mri_ds.training.proposal.choice import RANKS, SCALE, SPEED, TASKS, Choice

    sections: dict[str, list[str]] = {}
    value = {one.key: one.value for one in choices}
    whole = [Choice(key, one, "") for key, one in rest.items()]
    for one in [*choices, *whole]:
        if one.key not in SPEED and one.key not in (RANKS, TASKS):
            section, _, key = one.key.partition(".")
            told = yaml.safe_dump(one.value, default_flow_style=True, width=10**6).removesuffix("\n...\n").strip()
            sections.setdefault(section, []).append(f"  {key}: {told}" + (f"  # {one.why}" if one.why else ""))
    lines = [line for section, own in sections.items() for line in (f"{section}:", *own)]
    tasks = {name: found.manifest.tasks[name].model_dump(include={"kind", "classes", "unit"}) for name in value[TASKS]}
    lines += ["tasks:"]
    for name, task in tasks.items():
        told = yaml.safe_dump({k: v for k, v in task.items() if v}, default_flow_style=True, width=10**6, sort_keys=False).strip()
        lines.append(f"  {yaml.safe_dump(name).removesuffix('...' + chr(10)).strip()}: {told}")
    return HEAD.format(source=found.where, scale=value[SCALE]) + "\n".join(lines) + "\n"


def _json(value: Mapping[str, Any]) -> str:
    """The scale's JSON with the chosen layout; what is "auto" there stays so."""
    from mri_ds.training.proposal.choice import RECOMPUTE, SCALE, ZERO

    raw = json.loads((DS_CONFIGS / f"{value[SCALE]}.json").read_text())
    raw["zero_optimization"]["stage"] = value[ZERO]
    raw["activation_checkpointing"]["level"] = value[RECOMPUTE]
    return json.dumps(raw, indent=2) + "\n"
