"""The command `init`: from data to the files of a first run, every choice with its reason, and a person may change any."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mri_ds.cli import console
from mri_ds.cli.choices import one_of, option_of
from mri_ds.config import SCALES
from mri_ds.errors import InputError

if TYPE_CHECKING:
    from mri_ds.data.survey import Survey
    from mri_ds.training.proposal.choice import Choice
    from mri_ds.training.proposal.hardware import Hardware


def init(
    source: Annotated[Path, typer.Argument(metavar="DATA", help="A dataset's folder or .csv table, or a folder of shards.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for run.yaml and the DeepSpeed JSON.")] = Path("."),
    scale: Annotated[str | None, option_of("--scale", SCALES, " Default: by the number of subjects.")] = None,
    ranks: Annotated[int | None, typer.Option("--ranks", min=1, help="Processes. Default: by the hardware.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Settle one of the choices, or any other YAML key; may be repeated."),
    ] = None,
    layout: Annotated[str, typer.Option("--format", help="As of `mri-ds shard`; auto looks.")] = "auto",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing: take every choice as it is proposed.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write over files that are there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; needs --yes.")] = False,
) -> None:
    """Look at data, propose a run for this machine, explain each choice, and write its files once you agree.

    Writes run.yaml (science) and SCALE.json (speed), which `mri-ds train` takes as they are, and, where label maps have no class
    names, dataset.yaml beside the data. Says which commands come next.

    Example: `mri-ds init Task04_Hippocampus --out runs/first`

    In a script: `mri-ds init data/subjects --out runs/first --yes --set training.steps=200`
    """
    one_of(scale, SCALES, "--scale")
    if not yes and (json or not sys.stdin.isatty()):
        raise InputError("there is nobody to ask", where="--json" if json else "stdin", fix="add --yes to take what is proposed")
    with console.stdout_for_result() if json else _nothing():
        from mri_ds.cli.init import files, questions
        from mri_ds.training.proposal.hardware import find_hardware
        from mri_ds.training.proposal.propose import propose

        fixed, rest = questions.settled(scale, ranks, overrides or [])
        names = files.Names()
        found = questions.look(source, layout, names, ask=not yes)
        hardware = find_hardware()
        choices = propose(found, hardware, fixed)
        if not json:
            questions.show(found, hardware, choices)
        if not yes:
            choices = questions.go_through(found, hardware, choices, fixed)
        written = files.contents(out, found, choices, rest) | names.contents()
        files.check_overwriting(written, force=force, ask=None if yes else questions.may_overwrite)
        files.write(written)
        commands = files.commands(out, found, choices, written)
    _tell(found, hardware, choices, list(written), commands, as_json=json)


def _tell(
    found: "Survey", hardware: "Hardware", choices: list["Choice"], written: list[Path], commands: list[str], *, as_json: bool
) -> None:
    if as_json:
        chosen = [{"key": one.key, "value": one.value, "why": one.why} for one in choices]
        data = found.manifest.model_dump(mode="json", include={"layout", "channels", "tasks", "fingerprint"})
        counted = {"num_subjects": found.num_subjects, "num_train": found.num_train, "num_looked_at": found.num_looked_at}
        told: dict[str, Any] = {"data": {**data, **counted, "problems": found.problems}, "hardware": hardware.describe()}
        console.print_json({**told, "choices": chosen, "files": [str(path) for path in written], "commands": commands})
        return
    print("\n".join(f"wrote {path}" for path in written))
    print("Next:")
    print("\n".join(f"  {command}" for command in commands))


def _nothing() -> Any:
    from contextlib import nullcontext

    return nullcontext()
