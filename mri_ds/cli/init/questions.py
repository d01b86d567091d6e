"""What `mri-ds init` shows, and what it asks."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.prompt import Confirm, Prompt

from mri_ds.cli import console
from mri_ds.cli.init.files import Names
from mri_ds.errors import InputError

if TYPE_CHECKING:
    from mri_ds.config import TaskConfig
    from mri_ds.data.survey import Survey
    from mri_ds.training.proposal.choice import Choice
    from mri_ds.training.proposal.hardware import Hardware


def settled(scale: str | None, ranks: int | None, overrides: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """({key: value} of choices, {key: value} of other YAML keys) that the command line says. InputError for a wrong one."""
    from mri_ds.training.proposal.choice import RANKS, SCALE
    from mri_ds.training.proposal.propose import KEYS, config_of

    said: dict[str, Any] = {}
    for item in overrides:
        key, sep, text = item.partition("=")
        if not sep:
            raise InputError(f"--set {item!r} has no value", fix="write --set section.key=value, as training.steps=200")
        said[key] = _value(text)
    rest = {key: value for key, value in said.items() if key not in KEYS}
    if bad := next((key for key in rest if key.count(".") != 1), None):
        raise InputError(f"unknown key {bad!r}", where="--set", fix=f"give section.key, or one of {', '.join(KEYS)}")
    config_of(rest, {})
    said |= ({SCALE: scale} if scale else {}) | ({RANKS: ranks} if ranks else {})
    return {key: value for key, value in said.items() if key in KEYS}, rest


def look(source: Path, layout: str, names: Names, *, ask: bool) -> "Survey":
    """The data; where classes have no names, a person gives them, or they are called class1 and so on."""
    from mri_ds.config import TaskConfig
    from mri_ds.data.layouts.description import NamesMissing
    from mri_ds.data.survey import survey

    try:
        with console.progress("look", unit="subjects") as report:
            return survey(source, layout, progress=report)
    except NamesMissing as missing:
        tasks = {
            name: TaskConfig(kind="segmentation", classes=_classes(name, paths, ask)) for name, paths in missing.maps.items()
        }
        names.say(missing.file, tasks | missing.tasks)
    with names.in_place(), console.progress("look", unit="subjects") as report:
        return survey(source, layout, progress=report)


def show(found: "Survey", hardware: "Hardware", choices: list["Choice"]) -> None:
    manifest, grid = found.manifest, found.manifest.fingerprint
    looked = "" if found.num_looked_at == found.num_subjects else f" ({found.num_looked_at} of them looked at)"
    size = " x ".join(map(str, grid.median_shape))
    rows = [
        ["layout", "shards" if found.is_shards else manifest.layout],
        ["subjects", f"{found.num_subjects}, {found.num_train} to train on{looked}"],
        ["channels", ", ".join(manifest.channels)],
        ["median volume", f"{size} voxels of {' x '.join(f'{edge:.3g}' for edge in grid.median_spacing_mm)} mm"],
        *([f"task {name}", describe(task)] for name, task in manifest.tasks.items()),
        ["machine", hardware.name],
    ]
    console.print_table([f"{found.where}", ""], rows, left=2)
    for line in found.problems:
        print(f"note: {line}")
    show_choices(choices)


def show_choices(choices: list["Choice"]) -> None:
    rows = [[str(number), one.key, written(one.value), one.why] for number, one in enumerate(choices, 1)]
    console.print_table(["", "choice", "value", "why"], rows, left=4)


def go_through(found: "Survey", hardware: "Hardware", choices: list["Choice"], fixed: Mapping[str, Any]) -> list["Choice"]:
    """Asks for changes until there are none; what depends on a change is chosen anew."""
    from mri_ds.training.proposal.propose import propose

    said = dict(fixed)
    while answer := Prompt.ask("Change which choice? Its number or name; Enter takes them all", default="", show_default=False):
        one = next((c for number, c in enumerate(choices, 1) if answer.strip() in (str(number), c.key)), None)
        if one is None:
            print(f"there is no choice {answer!r}: give a number from 1 to {len(choices)}")
            continue
        text = Prompt.ask(f"{one.key}", default=written(one.value))
        try:
            choices = propose(found, hardware, said | {one.key: _value(text)})
        except InputError as err:
            print(err)
            continue
        said[one.key] = _value(text)
        show_choices(choices)
    return choices


def may_overwrite(path: Path) -> bool:
    return Confirm.ask(f"{path} is there already. Write over it?", default=False)


def describe(task: "TaskConfig") -> str:
    """As "segmentation: background, csf (1.2 %), white (40 %)"."""
    if task.kind == "regression":
        unit = f" {task.unit}" if task.unit else ""
        return f"regression: {task.mean:.3g} -+ {task.std:.3g}{unit}"
    of = "voxels" if task.kind == "segmentation" else "subjects"
    shares = [f" ({100 * share:.2g} %)" for share in task.class_prior] or [""] * len(task.classes)
    told = ", ".join(f"{name}{share}" for name, share in zip(task.classes, shares, strict=True))
    return f"{task.kind}: {told}" + (f" of {of}" if task.class_prior else "")


def written(value: Any) -> str:
    """As a person writes it: small, [35, 50, 36], a, b."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return str(value)


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text  # whoever checks it says what it should be


def _classes(task: str, paths: list[Path], ask: bool) -> list[str]:
    from mri_ds.data.survey import highest_label

    highest = max(1, highest_label(paths))
    names = ["background"]
    for number in range(1, highest + 1):
        proposed = task if highest == 1 else f"class{number}"
        names.append(Prompt.ask(f"What is label {number} of {task}?", default=proposed) if ask else proposed)
    if len(set(names)) < len(names):
        raise InputError(f"two classes of {task} have one name: {', '.join(names)}", fix="give each a name of its own")
    return names
